"""insightface's IResNet in PyTorch, with a gradient, from the two kinds of file that people own.

ArcFace-torch writes `backbone.pth`, a state dict. A model pack holds an ONNX graph of the same network, in which the
exporter merged most batch normalisations into the convolutions before them; its values are found by the graph's
structure, since the exporter's names are numbers.
"""

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lafr.errors import InputError, need, reason_of
from lafr.networks.crops import SimilarityCrop
from lafr.networks.recognisers import Recogniser
from lafr.weights import load_pickle, locate

WIDTHS = (64, 128, 256, 512)  # channels of the four stages, each of which halves the side
UNITS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3)}  # residual units of the stages


class IResidual(nn.Module):
    """Residual unit of ArcFace-torch's IResNet: normalised before and after its first convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if inputs != outputs or stride != 1:
            skip = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(skip, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


class IResNet(Recogniser):
    """IResNet-50 or -100 (ArcFace, Deng et al., CVPR 2019) on the 112 px ArcFace crop, (x - 127.5) / 127.5; 512-d.

    insightface reads RGB: its `get_feat` swaps OpenCV's BGR, and ArcFace-torch trains on decoded RGB records.

    Args:
        units: residual units of the four stages, see `UNITS`.
        origin: its name in `origins`.
        bgr: the weights were trained on BGR.
    """

    name = "insightface_r50"

    def __init__(self, units: tuple[int, ...] = UNITS[50], origin: str = "insightface", bgr: bool = False):
        super().__init__()
        self.origins, self.bgr = frozenset({origin}), bgr
        self.crop = SimilarityCrop()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        inputs = 64
        for index, (outputs, count) in enumerate(zip(WIDTHS, units, strict=True), 1):
            first, others = IResidual(inputs, outputs, 2), [IResidual(outputs, outputs, 1) for _ in range(count - 1)]
            setattr(self, f"layer{index}", nn.Sequential(first, *others))
            inputs = outputs
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)
        self.requires_grad_(False).eval()

    @classmethod
    def from_state(cls, state: dict[str, Tensor], **settings: Any) -> "IResNet":
        """Load the network from ArcFace-torch's state dict, whose names tell the depth."""
        state = {key.removeprefix("module."): value for key, value in state.items()}
        # "layer3.13.conv1.weight" is of the fourteenth block of the third stage
        blocks = {tuple(key.split(".")[:2]) for key in state if key.startswith("layer")}
        depths = Counter(stage for stage, _ in blocks)
        network = cls(tuple(depths[f"layer{i}"] for i in range(1, 5)), **settings)
        network.load_state_dict(state)
        return network.eval()

    @classmethod
    def from_onnx(cls, path: str | Path, **settings: Any) -> "IResNet":
        """Load the network from an ONNX graph of a model pack; raises InputError when it is another network's."""
        try:
            layers = GraphLayers(path)
        except (IndexError, KeyError) as error:  # a layer whose weights are not where an IResNet has them
            raise InputError(f"{str(path)!r} is no IResNet of an insightface pack: {reason_of(error)}") from None
        widths = [weight.shape[0] for weight in layers.convolutions(3)]
        # the stem and a unit's two convolutions: 1 + 2 n of width 64, 2 n of the others
        network = cls(tuple(widths.count(width) // 2 for width in WIDTHS), **settings)
        layers.load_into(network)
        return network.eval()

    def units(self) -> list[IResidual]:
        """Return the residual units in order."""
        return [unit for index in range(1, 5) for unit in getattr(self, f"layer{index}")]

    def prepare(self, image: Tensor) -> Tensor:
        """Return the crop `[B, 3, 112, 112]` in [-1, 1], which is (x - 127.5) / 127.5."""
        crop = self.crop(image)
        return crop.flip(1) if self.bgr else crop

    def embed(self, pixels: Tensor) -> Tensor:
        """Return `[B, 512]`, not of unit length."""
        x = self.prelu(self.bn1(self.conv1(pixels)))  # [B, 64, 112, 112]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B, 512, 7, 7]
        return self.features(self.fc(self.bn2(x).flatten(1)))


class InsightFaceR50(IResNet):
    """`w600k_r50.onnx` of the pack buffalo_l, with a gradient."""

    @classmethod
    def from_pretrained(cls) -> "InsightFaceR50":
        """Load the network from $LAFR_WEIGHTS; raises InputError when onnx or the file is missing."""
        return cls.from_onnx(locate("insightface_w600k_r50"), origin="insightface_w600k_r50")


class InsightFaceR100(IResNet):
    """`glintr100.onnx` of the pack antelopev2, with a gradient."""

    name = "insightface_r100"

    @classmethod
    def from_pretrained(cls) -> "InsightFaceR100":
        """Load the network from $LAFR_WEIGHTS; raises InputError when onnx or the file is missing."""
        return cls.from_onnx(locate("insightface_glintr100"), origin="insightface_glintr100")


class ArcFaceTorch(IResNet):
    """`backbone.pth` as ArcFace-torch writes it: your own training or one of its model zoo, r50 or r100."""

    name = "arcface_torch"

    @classmethod
    def from_pretrained(cls) -> "ArcFaceTorch":
        """Load the network from $LAFR_WEIGHTS; raises InputError when it is missing or not pinned."""
        return cls.from_state(load_pickle("arcface_torch"), origin="arcface_torch")


class GraphLayers:
    """The layers of an IResNet's ONNX graph, by what their inputs are rather than by name.

    A convolution is recognised by its side (1: the skip of a unit), a batch normalisation by what stands before it.
    """

    def __init__(self, path: str | Path):
        onnx = need("onnx", "onnx")
        graph, self.path = onnx.load(str(path)).graph, str(path)
        stored = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)).float() for t in graph.initializer}
        made_by = {name: node for node in graph.node for name in node.output}
        # a pack of MXNet's days normalises inside the graph: its first nodes are Sub and Mul
        if {node.op_type for node in graph.node[:8]} & {"Sub", "Mul"}:
            raise self._other("it normalises its input itself")
        self.found: dict[str, list] = defaultdict(list)
        for node in graph.node:
            if node.op_type in ("Identity", "Unsqueeze") and node.input[0] in stored:  # a shared or reshaped weight
                stored[node.output[0]] = stored[node.input[0]]
                continue
            values = [stored[name] for name in node.input if name in stored]
            before = made_by.get(node.input[0]) if node.input else None
            if node.op_type == "Conv":
                self.found[f"conv{values[0].shape[-1]}"].append(values)
            elif node.op_type == "BatchNormalization":
                epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
                values = [*values, epsilon]
                if before is not None and before.op_type == "Conv":
                    # not merged: it takes the place of the convolution's bias
                    self.found[f"conv{stored[before.input[1]].shape[-1]}"][-1].append(values)
                else:
                    after_linear = before is not None and before.op_type in ("Gemm", "MatMul", "Add") and self.linear
                    self.found["features" if after_linear else "bn"].append(values)
            elif node.op_type == "PRelu":
                self.found["prelu"].append(values[0].flatten())
            elif node.op_type == "Gemm":
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                self.found["linear"].append((values[0] if transposed else values[0].T, values[1]))

    @property
    def linear(self) -> bool:
        """Whether the last layer has been met."""
        return bool(self.found["linear"])

    def convolutions(self, side: int) -> list[Tensor]:
        """Return the weights of the convolutions of this side, in order."""
        return [values[0] for values in self.found[f"conv{side}"]]

    @torch.no_grad()
    def load_into(self, network: IResNet) -> None:
        """Copy every value; raises InputError where number or shape of the layers differ."""
        units = network.units()
        threes, ones = [(network.conv1, network.bn1)], []
        for unit in units:
            threes += [(unit.conv1, unit.bn2), (unit.conv2, unit.bn3)]
            ones += [tuple(unit.downsample)] if unit.downsample is not None else []
        slopes = [network.prelu, *(unit.prelu for unit in units)]
        norms = [*(unit.bn1 for unit in units), network.bn2]
        try:
            for side, pairs in ((3, threes), (1, ones)):
                for (convolution, norm), values in zip(pairs, self.found[f"conv{side}"], strict=True):
                    _copy(convolution.weight, values[0])
                    _load_norm(norm, values[1])
            for slope, value in zip(slopes, self.found["prelu"], strict=True):
                _copy(slope.weight, value)
            for norm, values in zip(norms, self.found["bn"], strict=True):
                _load_norm(norm, values)
            ((weight, bias),) = self.found["linear"]
            _copy(network.fc.weight, weight)
            _copy(network.fc.bias, bias)
            for values in self.found["features"]:
                _load_norm(network.features, values)
            if not self.found["features"]:  # merged into the linear layer
                _load_norm(network.features, torch.zeros(512))
        except (ValueError, IndexError) as error:
            raise self._other(str(error)) from None

    def _other(self, why: str) -> InputError:
        return InputError(f"{self.path!r} is no IResNet of an insightface pack: {why}")


def _copy(parameter: Tensor, value: Tensor) -> None:
    if parameter.shape != value.shape:
        raise ValueError(f"a layer has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
    parameter.copy_(value)


def _load_norm(norm: nn.BatchNorm2d | nn.BatchNorm1d, values: list | Tensor) -> None:
    """Copy scale, shift, mean, variance and epsilon, or make it add a merged layer's bias and nothing else."""
    if torch.is_tensor(values):
        values = [torch.ones_like(values), values, torch.zeros_like(values), torch.ones_like(values), 1e-12]
    *tensors, norm.eps = values
    for own, value in zip((norm.weight, norm.bias, norm.running_mean, norm.running_var), tensors, strict=True):
        _copy(own, value)
