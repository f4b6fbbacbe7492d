"""MobileFaceNet (Chen et al., CCBR 2018), normalisation folded into the convolutions; and the teacher that has it."""

import torch
from torch import Tensor, nn

from lafr.errors import InputError, need
from lafr.networks.crops import SimilarityCrop
from lafr.weights import locate

# (inner width, output width, stride) of the bottlenecks; equal shapes at stride 1 have a skip.
BOTTLENECKS = (
    (128, 64, 2), *[(128, 64, 1)] * 4,
    (256, 128, 2), *[(256, 128, 1)] * 6,
    (512, 128, 2), *[(256, 128, 1)] * 2,
)  # fmt: skip


def convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Return a convolution that keeps the side (but for `stride`), and its PReLU."""
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups), nn.PReLU(outputs)]


class Bottleneck(nn.Sequential):
    """1 x 1 up, depthwise 3 x 3, 1 x 1 down without activation (MobileNetV2), around a skip where shapes agree."""

    def __init__(self, inputs: int, inner: int, outputs: int, stride: int):
        down = nn.Conv2d(inner, outputs, 1)
        super().__init__(*convolution(inputs, inner), *convolution(inner, inner, 3, stride, inner), down)
        self.skip = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        return super().forward(x) + x if self.skip else super().forward(x)


class MobileFaceNet(nn.Module):
    """Identity: `[B, 3, H, W]` in [-1, 1], FFHQ-aligned, to unit embeddings `[B, 512]`.

    Reads ArcFace's 112 px crop in RGB as (x - 127) / 128.
    """

    def __init__(self) -> None:
        super().__init__()
        self.crop = SimilarityCrop()
        widths = [64, *(outputs for _, outputs, _ in BOTTLENECKS)]
        self.layers = nn.Sequential(
            *convolution(3, 64, 3, 2),
            *convolution(64, 64, 3, 1, 64),
            *(Bottleneck(inputs, *shape) for inputs, shape in zip(widths, BOTTLENECKS, strict=False)),
            *convolution(128, 512),
            nn.Conv2d(512, 512, 7, groups=512),  # a weight for each position: 7 x 7 to 1 x 1
            nn.Conv2d(512, 512, 1),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the embeddings."""
        pixels = (self.crop(image) + 1) * 127.5
        return nn.functional.normalize(self.layers((pixels - 127) / 128).flatten(1), dim=1)


class FacePluginFeature(MobileFaceNet):
    """The recogniser that the miniature's starts from and was distilled from (MIT); needed only to train that one."""

    origins = frozenset({"faceplugin_feature"})

    @classmethod
    def from_pretrained(cls) -> "FacePluginFeature":
        """Load the network from its ONNX file; raises InputError when `onnx` or the file is missing."""
        network = cls()
        load_onnx(network, str(locate("faceplugin_feature")))
        return network


@torch.no_grad()
def load_onnx(network: MobileFaceNet, path: str) -> None:
    """Copy the weights of an ONNX MobileFaceNet, in the order of its nodes; raises InputError where a shape differs."""
    onnx = need("onnx", "onnx")
    graph = onnx.load(path).graph
    stored = {tensor.name: torch.tensor(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in ("Conv", "PRelu")]
    names = [name for node in layers for name in node.input[1:] if name in stored]
    # slopes of a PReLU are stored as [C, 1, 1]
    values = [stored[name].flatten() if stored[name].ndim == 3 else stored[name] for name in names]
    if [value.shape for value in values] != [parameter.shape for parameter in network.parameters()]:
        raise InputError(f"{str(path)!r} is no MobileFaceNet of faceplugin: its layers have other shapes")
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.copy_(value)
