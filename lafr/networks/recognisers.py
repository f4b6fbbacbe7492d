"""Differentiable recognisers, for losses and metrics: float32, weights from `lafr.weights`.

Each maps `[B, 3, H, W]` in [-1, 1], FFHQ-aligned, to unit embeddings `[B, D]`: `prepare` crops and orders the pixels
as the network was trained on, `embed` is its forward pass. Built without a state dict it has random weights.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.errors import InputError, need, reason_of
from lafr.networks.crops import SimilarityCrop
from lafr.weights import NO_DEPS, load_pickle

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Recogniser(nn.Module):
    """Unit embeddings of aligned faces. `origins` names the network, `name` its entry in `lafr.networks.NETWORKS`."""

    name: str
    origins: frozenset[str]

    def prepare(self, image: Tensor) -> Tensor:
        """Return what the network reads, of `[B, 3, H, W]` in [-1, 1]."""
        raise NotImplementedError

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the network's own output `[B, D]`."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> Tensor:
        """Return unit embeddings `[B, D]` in float32."""
        return F.normalize(self.embed(self.prepare(image.float())), dim=1)

    def train(self, mode: bool = True) -> "Recogniser":
        """Stay in eval mode: batch statistics and dropout belong to its own training."""
        return super().train(False)


class ArcFaceIRSE50(Recogniser):
    """IR-SE-50 (ArcFace, Deng et al., CVPR 2019) on the 112 px ArcFace crop, BGR in [-1, 1]; 512-d.

    The architecture is facexlib's, the weights TreB1eN's (InsightFace_Pytorch). They were trained on BGR: its
    `load_mx_rec` stores OpenCV's channel order as if it were RGB, and its `load_bin` turns the validation images to
    BGR; InfiniteYou feeds facexlib's copy BGR as well. The losses of pSp and e4e feed the same weights RGB, and the
    face from a wider crop; numbers of theirs are not comparable.
    """

    name = "arcface_irse50"
    origins = frozenset({"arcface_irse50"})

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        self.crop = SimilarityCrop()
        architecture = need("facexlib.recognition.arcface_arch", NO_DEPS)
        self.backbone = architecture.Backbone(50, drop_ratio=0.6, mode="ir_se")
        _freeze(self, self.backbone, state)

    @classmethod
    def from_pretrained(cls) -> "ArcFaceIRSE50":
        """Load the network with the published weights; raises InputError when facexlib or they are missing."""
        return cls(load_pickle(cls.name))

    def prepare(self, image: Tensor) -> Tensor:
        """Return the crop `[B, 3, 112, 112]`, BGR in [-1, 1]."""
        return self.crop(image).flip(1)

    def embed(self, pixels: Tensor) -> Tensor:
        """Return `[B, 512]`, which facexlib scales to unit length itself."""
        return self.backbone(pixels)


class IRBlock(nn.Module):
    """Residual block with one PReLU for both of its activations (ronghuaiyang/arcface-pytorch, no squeeze-excite)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.bn0 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inputs, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        skip = [] if same else [nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)]
        self.downsample = nn.Sequential(*skip)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, inputs, h, w]` to `[B, outputs, h / stride, w / stride]`."""
        y = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        return self.prelu(self.bn2(self.conv2(y)) + self.downsample(x))


class ArcFaceResNet18(Recogniser):
    """The gray ResNet-18 of `deg`, GFPGAN's identity loss and `ida_rad`: the whole crop at 128 px; 512-d.

    Written after ronghuaiyang/arcface-pytorch's `resnet_face18(use_se=False)`; the names are those of
    `resnet18_110.pth` without its `module.` prefix.
    """

    name = "arcface_resnet18"
    origins = frozenset({"arcface_resnet18"})

    def __init__(self, state: dict[str, Tensor] | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU()
        for index, (inputs, outputs, stride) in enumerate([(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)], 1):
            setattr(
                self, f"layer{index}", nn.Sequential(IRBlock(inputs, outputs, stride), IRBlock(outputs, outputs, 1))
            )
        self.bn4 = nn.BatchNorm2d(512)
        self.fc5 = nn.Linear(512 * 8 * 8, 512)
        self.bn5 = nn.BatchNorm1d(512)
        state = state and {key.removeprefix("module."): value for key, value in state.items()}
        _freeze(self, self, state)

    @classmethod
    def from_pretrained(cls) -> "ArcFaceResNet18":
        """Load the network with the published weights; raises InputError when they are missing or not pinned."""
        return cls(load_pickle(cls.name))

    def prepare(self, image: Tensor) -> Tensor:
        """Return `[B, 1, 128, 128]` in [-1, 1], that is (x - 127.5) / 127.5, as GFPGAN's loss does.

        Gray is 0.2989 R + 0.587 G + 0.114 B (0.9999 in all) in float, then bilinear without antialiasing. VQFR's
        metric takes OpenCV's 8-bit gray instead (0.299 R): see `lafr.metrics.face.Deg`.
        """
        return shrink(image, (0.2989, 0.587, 0.114))

    def embed(self, pixels: Tensor) -> Tensor:
        """Return `[B, 512]`, not of unit length, of `[B, 1, 128, 128]`."""
        x = F.max_pool2d(self.prelu(self.bn1(self.conv1(pixels))), 2)  # [B, 64, 64, 64]
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # [B, 512, 8, 8]
        return self.bn5(self.fc5(self.bn4(x).flatten(1)))


def shrink(image: Tensor, weights: tuple[float, float, float], size: int = 128) -> Tensor:
    """Return the gray `[B, 1, size, size]` of `[B, 3, H, W]`: `weights` of its channels, bilinear, no antialiasing."""
    gray = (image * image.new_tensor(weights)[:, None, None]).sum(1, keepdim=True)
    return F.interpolate(gray, (size, size), mode="bilinear", align_corners=False)


class CLIPImage(Recogniser):
    """CLIP's image embedding (Radford et al., ICML 2021) of the whole crop, which one account of the paper names.

    RGB at the model's own size (224 px for ViT-B/32): bicubic, antialiased, CLIP's mean and standard deviation. Unlike
    CLIP's processor it does not round or clamp the resized pixels: a clamp would stop the gradient.

    Args:
        vision: a transformers `CLIPVisionModelWithProjection`.
    """

    name = "clip"
    origins = frozenset({"clip"})

    def __init__(self, vision: nn.Module):
        super().__init__()
        self.vision, self.size = vision, vision.config.image_size
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)
        _freeze(self, vision, None)

    @classmethod
    def from_pretrained(cls, folder: str = "openai/clip-vit-base-patch32") -> "CLIPImage":
        """Load the network from a folder or a Hugging Face repository; raises InputError when it cannot be had."""
        from transformers import CLIPVisionModelWithProjection

        return cls(transformers_model(CLIPVisionModelWithProjection, folder, "CLIP's weights"))

    def prepare(self, image: Tensor) -> Tensor:
        """Return `[B, 3, size, size]`, normalised."""
        unit = (image + 1) / 2
        small = F.interpolate(unit, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return (small - self.mean) / self.std

    def embed(self, pixels: Tensor) -> Tensor:
        """Return the projected embedding `[B, D]`, not of unit length."""
        return self.vision(pixel_values=pixels).image_embeds


def transformers_model(kind: Any, folder: str, what: str) -> nn.Module:
    """Return a transformers model of class `kind`, frozen, from a folder or a Hugging Face repository.

    Raises InputError, which says `what` is wanted, when it cannot be had, and when some of its weights are not there:
    transformers would draw those at random.
    """
    wanted = f"a folder or repository that holds {what}"
    try:
        model, found = kind.from_pretrained(folder, output_loading_info=True)
    except Exception as error:  # the hub, safetensors and transformers raise many kinds
        raise InputError("folder", folder, wanted, reason_of(error)) from None
    if lost := sorted(found["missing_keys"]):
        raise InputError("folder", folder, wanted, f"it lacks {len(lost)} weights of a {kind.__name__}: {lost[0]}, ...")
    return model.requires_grad_(False).eval()


def _freeze(recogniser: nn.Module, network: nn.Module, state: dict[str, Tensor] | None) -> None:
    if state is not None:
        network.load_state_dict(state)
    recogniser.requires_grad_(False).eval()
