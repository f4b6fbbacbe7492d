"""Recognisers for scoring only: no gradient, so none of them can have trained the model that it scores.

Same interface as `lafr.networks.recognisers`; packages that only they need are imported where they are built.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lafr.errors import need
from lafr.networks.crops import SimilarityCrop
from lafr.networks.recognisers import Recogniser
from lafr.weights import load_pickle, locate


class OnnxRecogniser(Recogniser):
    """An ONNX network on the 112 px ArcFace crop, RGB, run by onnxruntime one face a call.

    Args:
        model: the network, as a file or serialised.
        mean, scale: the network reads (x - mean) / scale of pixels 0..255.
    """

    def __init__(self, model: Path | bytes, mean: float, scale: float):
        super().__init__()
        onnxruntime = need("onnxruntime", "onnxruntime")
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.crop, self.mean, self.scale = SimilarityCrop(), mean, scale

    def prepare(self, image: Tensor) -> Tensor:
        """Return the crop `[B, 3, 112, 112]`, RGB."""
        return ((self.crop(image) + 1) * 127.5 - self.mean) / self.scale

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Return the network's own output `[B, D]`."""
        name = self.session.get_inputs()[0].name
        outputs = [self.session.run(None, {name: crop[None]})[0] for crop in pixels.cpu().numpy()]
        return torch.from_numpy(np.concatenate(outputs)).to(pixels.device)


class SFace(OnnxRecogniser):
    """SFace (Zhong et al., TIP 2021) of the OpenCV zoo, 8-bit blocks: RGB 0..255; 128-d.

    OpenCV's `FaceRecognizerSF` takes BGR and swaps it; the network itself reads RGB.
    """

    name = "sface"
    origins = frozenset({"sface"})

    @classmethod
    def from_pretrained(cls) -> "SFace":
        """Return it; raises InputError when onnx, onnxruntime or the file is missing."""
        return cls(_only_input(locate(cls.name), "data"), mean=0, scale=1)


class InsightFace(OnnxRecogniser):
    """A recogniser of an insightface pack, non-commercial: RGB, (x - 127.5) / 127.5; 512-d.

    Args:
        model: its ONNX file, for instance `glintr100.onnx`.
        origin: its name in `origins`.
    """

    name = "insightface"

    def __init__(self, model: Path | str, origin: str = "insightface_w600k_r50"):
        super().__init__(Path(model), mean=127.5, scale=127.5)
        self.origins = frozenset({origin})

    @classmethod
    def from_pretrained(cls) -> "InsightFace":
        """Return `w600k_r50.onnx` from $LAFR_WEIGHTS; raises InputError when onnxruntime or it is missing."""
        return cls(locate("insightface_w600k_r50"))


class IRLayer(nn.Module):
    """Residual unit of AdaFace's IR networks: unlike facexlib's it normalises after its first convolution too."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        shortcut = nn.MaxPool2d(1, stride)
        if inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.shortcut_layer = shortcut
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFace(Recogniser):
    """AdaFace (Kim et al., CVPR 2022), IR-50 or IR-101: the 112 px crop, BGR in [-1, 1]; 512-d. NTIRE's recogniser.

    Args:
        state: state dict in the published layout, with or without Lightning's `model.` prefix.
        units: residual units of the four stages: (3, 4, 14, 3) is IR-50, (3, 13, 30, 3) IR-101.
    """

    name = "adaface"
    origins = frozenset({"adaface"})

    def __init__(self, state: dict[str, Tensor] | None = None, units: tuple[int, ...] = (3, 4, 14, 3)):
        super().__init__()
        self.crop = SimilarityCrop()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        layers, inputs = [], 64
        for outputs, count in zip((64, 128, 256, 512), units, strict=True):
            layers += [IRLayer(inputs, outputs, 2), *(IRLayer(outputs, outputs, 1) for _ in range(count - 1))]
            inputs = outputs
        self.body = nn.Sequential(*layers)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, 512),
            nn.BatchNorm1d(512, affine=False),
        )
        if state is not None:
            inside = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
            self.load_state_dict(inside or state)
        self.requires_grad_(False).eval()

    @classmethod
    def from_pretrained(cls) -> "AdaFace":
        """Return IR-50 with the published weights; raises InputError when they are missing or not pinned."""
        checkpoint = load_pickle(cls.name)
        return cls(checkpoint.get("state_dict", checkpoint))

    def prepare(self, image: Tensor) -> Tensor:
        """Return the crop `[B, 3, 112, 112]`, BGR in [-1, 1]."""
        return self.crop(image).flip(1)

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        """Return `[B, 512]`, not of unit length."""
        return self.output_layer(self.body(self.input_layer(pixels)))


def _only_input(path: Path, name: str) -> bytes:
    """Return the model without its other graph inputs: names of float weights that its 8-bit ones have replaced.

    onnxruntime would ask for a value of each, though no node reads it.
    """
    model = need("onnx", "onnx").load(path)
    kept = [given for given in model.graph.input if given.name == name]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model.SerializeToString()
