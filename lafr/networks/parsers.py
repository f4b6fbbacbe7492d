"""Face parsing: what each pixel shows, as logits over the classes of CelebAMask-HQ (Lee et al., CVPR 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.errors import need
from lafr.weights import NO_DEPS, load_pickle


def region_mask(logits: Tensor, classes: tuple[int, ...]) -> Tensor:
    """Return the probability `[B, 1, h, w]` that a pixel shows one of `classes`, of logits `[B, C, h, w]`."""
    return logits.softmax(1)[:, list(classes)].sum(1, keepdim=True)


class Parser(nn.Module):
    """A published parser: maps `[B, 3, H, H]` in [-1, 1] to logits `[B, 19, 512, 512]` in float32.

    As facexlib's inference scripts it reads RGB at 512 px, by OpenCV's bilinear resize, less `mean`, over `std` of
    pixels in [0, 1]. `regions` names the classes of each part of the face; `name` is its entry in
    `lafr.networks.NETWORKS`.
    """

    name: str
    origins: frozenset[str]
    regions: dict[str, tuple[int, ...]]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        self.network = self.architecture()
        if state is not None:
            self.network.load_state_dict(state)
        self.register_buffer("shift", torch.tensor(self.mean)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(self.std)[:, None, None], persistent=False)
        self.requires_grad_(False).eval()

    def architecture(self) -> nn.Module:
        """Return the untrained network; raises InputError when facexlib is missing."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls) -> "Parser":
        """Load the network with the published weights; raises InputError when facexlib or they are missing."""
        return cls(load_pickle(cls.name))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits."""
        rgb = F.interpolate((image.float() + 1) / 2, (512, 512), mode="bilinear", align_corners=False)
        return self.network((rgb - self.shift) / self.scale)[0]

    def train(self, mode: bool = True) -> "Parser":
        """Stay in eval mode: batch statistics belong to its own training."""
        return super().train(False)


class ParseNet(Parser):
    """PSFRGAN's parser (Chen et al., CVPR 2021), as facexlib and CodeFormer use it: RGB in [-1, 1].

    Classes in CelebAMask-HQ's order, from facexlib's `inference_parsing_parsenet.py`: background, skin, nose, glasses,
    eye, eye, brow, brow, ear, ear, mouth (its inside), upper lip, lower lip, hair, hat, earring, necklace, neck, cloth.
    """

    name = "parsenet"
    origins = frozenset({"parsenet"})
    regions = {"eyes": (4, 5), "brows": (6, 7), "nose": (2,), "mouth": (10, 11, 12), "skin": (1,)}  # noqa: RUF012
    mean, std = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def architecture(self) -> nn.Module:
        """Return the untrained network."""
        return need("facexlib.parsing.parsenet", NO_DEPS).ParseNet(in_size=512, out_size=512, parsing_ch=19)


class BiSeNet(Parser):
    """BiSeNet (Yu et al., ECCV 2018) of zllrunning/face-parsing.PyTorch, in facexlib: ImageNet's mean and deviation.

    Its classes have another order than ParseNet's, from facexlib's `inference_parsing.py`: background, skin, brow,
    brow, eye, eye, glasses, ear, ear, earring, nose, mouth (its inside), upper lip, lower lip, neck, necklace, cloth,
    hair, hat.
    """

    name = "bisenet"
    origins = frozenset({"bisenet"})
    regions = {"eyes": (4, 5), "brows": (2, 3), "nose": (10,), "mouth": (11, 12, 13), "skin": (1,)}  # noqa: RUF012
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def architecture(self) -> nn.Module:
        """Return the untrained network."""
        return need("facexlib.parsing.bisenet", NO_DEPS).BiSeNet(num_class=19)
