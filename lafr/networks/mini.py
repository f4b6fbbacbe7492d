"""The miniature's recogniser, landmarker and parser: small enough to ship, trained by `+experiment=mini_networks`."""

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lafr.networks.crops import resize
from lafr.networks.landmarkers import Landmarks, centre_of_mass
from lafr.networks.mobilefacenet import MobileFaceNet
from lafr.weights import mini_folder

REGIONS = ("background", "skin", "brows", "eyes", "nose", "lips", "inner_mouth")  # the parser's classes, in order
HEATMAP_SIGMA = 1.5  # of a landmark's Gaussian, in heatmap pixels


class Block(nn.Module):
    """Two 3 x 3 convolutions with group normalisation around a skip; `stride` 2 halves the side."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.GroupNorm(8, outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.GroupNorm(8, outputs),
        )
        same = inputs == outputs and stride == 1
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.activation = nn.PReLU(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        return self.activation(self.layers(x) + self.skip(x))


class Shipped(nn.Module):
    """A network whose weights lie in `data/mini/networks/NAME.safetensors`."""

    name: str

    @classmethod
    def from_pretrained(cls) -> "Shipped":
        """Load the network with the shipped weights, in float32."""
        network = cls()
        state = load_file(mini_folder() / "networks" / f"{cls.name}.safetensors")
        network.load_state_dict({key: value.float() for key, value in state.items()})
        return network


class MiniRecogniser(MobileFaceNet, Shipped):
    """Identity: a MobileFaceNet that starts from `faceplugin_feature` and is fine-tuned to recognise degraded faces as
    well as sharp ones.

    Maps `[B, 3, H, W]` in [-1, 1] to unit embeddings `[B, 512]`.
    """

    name = "recogniser"
    origins = frozenset({"mini_recogniser", "faceplugin_feature"})


class Hourglass(nn.Module):
    """Down to 1/16 and up again with skips: `[B, 3, 128, 128]` to `[B, outputs, 64, 64]`."""

    def __init__(self, outputs: int, widths: tuple[int, ...] = (24, 32, 48, 64)):
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 3, 2, 1)
        self.down = nn.ModuleList(Block(a, b, 2) for a, b in pairwise(widths))
        self.up = nn.ModuleList(Block(b + a, a) for a, b in pairwise(widths))
        self.last = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps."""
        x = self.first(x)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(x)
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            x = block(torch.cat([nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"), skip], 1))
        return self.last(x)

    def start_from(self, other: "Hourglass") -> None:
        """Copy everything but the last layer."""
        state = {key: value for key, value in other.state_dict().items() if not key.startswith("last.")}
        self.load_state_dict(state, strict=False)


class MiniLandmarker(Shipped):
    """The 68 points of iBUG, from a 128 px face: labels by dlib's predictor.

    Maps `[B, 3, H, W]` in [-1, 1] to `Landmarks`: heatmaps `[B, 68, 64, 64]` (a sure point is a Gaussian of peak 1),
    points `[B, 68, 2]` in pixels of the 512 crop.
    """

    name = "landmarker"
    origins = frozenset({"mini_landmarker", "dlib_68"})

    def __init__(self) -> None:
        super().__init__()
        self.hourglass = Hourglass(68)

    def logits(self, image: Tensor) -> Tensor:
        """Return `[B, 68, 64, 64]`: log-probability of each position, up to a constant."""
        return self.hourglass(resize(image, 128))

    def forward(self, image: Tensor) -> Landmarks:
        """Return heatmaps and their centres of mass."""
        logits = self.logits(image)
        p = logits.flatten(2).softmax(2).unflatten(2, logits.shape[-2:])
        return Landmarks(p * (2 * math.pi * HEATMAP_SIGMA**2), centre_of_mass(p))


class MiniParser(Shipped):
    """Facial regions from a 128 px face: labels drawn from the 68 points (`lafr.miniature.regions`).

    Maps `[B, 3, H, W]` in [-1, 1] to logits `[B, 7, 128, 128]` over `REGIONS`.
    """

    name = "parser"
    origins = frozenset({"mini_parser", "dlib_68"})
    regions = {"eyes": (3,), "brows": (2,), "nose": (4,), "mouth": (5, 6), "skin": (1,)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.hourglass = Hourglass(len(REGIONS))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        return resize(self.hourglass(resize(image, 128)), 128)


class MiniNetworks(nn.Module):
    """The three, untrained: what `+experiment=mini_networks` trains, one stage each."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.recogniser, self.landmarker, self.parser = MiniRecogniser(), MiniLandmarker(), MiniParser()
        self.teacher: dict[str, Tensor] | None = None
        self.trained_share = 1.0

    @classmethod
    def from_teacher(cls, teacher: MobileFaceNet, trained_share: float = 0.5, seed: int = 0) -> "MiniNetworks":
        """Build the three, the recogniser as a copy of its teacher.

        Args:
            trained_share: the saved weights interpolate from the teacher's (0) to the trained ones (1), as in WiSE-FT
                (Wortsman et al., CVPR 2022): the trained recogniser handles degraded faces, the teacher distinguishes
                people better.
        """
        networks = cls(seed)
        networks.teacher = {name: value.clone() for name, value in teacher.state_dict().items()}
        networks.trained_share = trained_share
        networks.recogniser.load_state_dict(networks.teacher)
        return networks

    def save_pretrained(self, folder: str | Path) -> None:
        """Write each as `NAME.safetensors`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        for network in (self.recogniser, self.landmarker, self.parser):
            state = network.state_dict()
            if network is self.recogniser and self.teacher:
                state = {name: self.teacher[name].to(v).lerp(v, self.trained_share) for name, v in state.items()}
            save_file(state, Path(folder) / f"{network.name}.safetensors")
