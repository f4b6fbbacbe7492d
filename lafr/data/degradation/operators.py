"""The operators of a degradation, one function each, on float32 RGB `[H, W, 3]` in [0, 1].

A record is a list of steps such as `{"op": "jpeg", "quality": 47}`: every value that was drawn, and nothing that can
be derived from it. `apply` runs the steps, so a record and the HQ image rebuild the LQ image. Records consist of
lists, dictionaries, numbers and strings: writing one as JSON loses nothing.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import functional as tv

from lafr.data.degradation.kernels import make_kernel
from lafr.data.degradation.resampling import blur_then_resize
from lafr.errors import InputError

Record = list[dict]
Degrade = Callable[[Tensor, np.random.Generator], Tensor]  # (hq, rng) -> lq, both [3, H, W] in [-1, 1]


@runtime_checkable
class Recipe(Protocol):
    """A degradation that draws its random parameters first, as a record."""

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Record:
        """Return the steps for an image of this size."""

    def __call__(self, hq: Tensor, rng: np.random.Generator) -> Tensor:
        """Return `lq`."""


def blur(image: np.ndarray, kernel: dict) -> np.ndarray:
    """Filter with the kernel that `lafr.data.degradation.kernels.make_kernel` builds; the border is mirrored."""
    return cv2.filter2D(image, -1, make_kernel(**kernel), borderType=cv2.BORDER_REFLECT_101)


def blur_down(image: np.ndarray, kernel: dict, factor: float) -> np.ndarray:
    """Blur, then shrink both sides by `factor`: bilinear without antialiasing, as BasicSR's chains do.

    A factor under 1 enlarges. The blur is computed only at the pixels that the bilinear resize reads.
    """
    height, width = image.shape[:2]
    # truncated, not rounded, as int() in BasicSR
    size = max(1, int(height / factor)), max(1, int(width / factor))
    return blur_then_resize(image, make_kernel(**kernel), size)


def resize(image: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """Resize: mode "bilinear" (OpenCV), or PyTorch's "area" and "bicubic" (a = -0.75), none antialiased."""
    if mode == "bilinear":
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    # PyTorch's, because BasicSR's second-order chain runs on tensors: OpenCV's bicubic and area differ
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]  # [1, 3, H, W]
    return F.interpolate(planes, (height, width), mode=mode)[0].permute(1, 2, 0).numpy()


def gaussian_noise(
    image: np.ndarray, sigma: float, generator: str | np.random.Generator, gray: bool = False
) -> np.ndarray:
    """Add white Gaussian noise of standard deviation `sigma` in 1/255; `gray`: the same in all channels."""
    shape = (*image.shape[:2], 1) if gray else image.shape
    noise = as_generator(generator).standard_normal(shape, dtype=np.float32)  # [h, w, 3], or [h, w, 1] if gray
    return np.clip(image + noise * np.float32(sigma / 255), 0, 1)


def poisson_noise(
    image: np.ndarray, scale: float, generator: str | np.random.Generator, gray: bool = False
) -> np.ndarray:
    """Add `scale` times the shot noise of a sensor that counts as many photons for white as there are grey levels.

    The count is the number of different 8-bit values in the image, rounded up to a power of two (scikit-image).
    """
    light = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] if gray else image
    light = np.round(light * 255).clip(0, 255) / 255
    # a Poisson count of mean lambda has variance lambda: fewer photons, more noise
    photons = 2.0 ** np.ceil(np.log2(len(np.unique(light))))
    noise = as_generator(generator).poisson(light * photons) / photons - light
    return np.clip(image + noise.astype(np.float32) * np.float32(scale), 0, 1)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress and decompress at JPEG `quality` (1..100), chroma at half resolution."""
    # OpenCV stores BGR, and its encoder halves the chroma by default (4:2:0)
    bgr = cv2.cvtColor(np.round(image.clip(0, 1) * 255).astype(np.uint8), cv2.COLOR_RGB2BGR)
    _, coded = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(np.float32) / 255


def colour_shift(image: np.ndarray, shift: list[float]) -> np.ndarray:
    """Add `shift`, one number a channel, in 1/255."""
    return np.clip(image + np.array(shift, np.float32) / 255, 0, 1)


def colour_jitter(image: np.ndarray, changes: list) -> np.ndarray:
    """Apply torchvision's adjustments: `changes` is a list of (brightness | contrast | saturation | hue, factor)."""
    planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # [3, H, W] in [0, 1], as torchvision's
    for name, factor in changes:
        planes = getattr(tv, f"adjust_{name}")(planes, factor)
    return planes.permute(1, 2, 0).numpy()


def gray(image: np.ndarray, target: bool = False) -> np.ndarray:
    """Replace colour by the luma of BT.601 in all channels. `target` marks a pair whose HQ image becomes gray too."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


_ALL = (blur, blur_down, resize, gaussian_noise, poisson_noise, jpeg, colour_shift, colour_jitter, gray)
OPERATORS: dict[str, Callable] = {operator.__name__: operator for operator in _ALL}


def apply(record: Record, hq: Tensor, rng: np.random.Generator | None = None) -> Tensor:
    """Return `lq`: `hq` after the steps of `record`, both `[3, H, W]` in [-1, 1]; `lq` on 8-bit levels.

    Args:
        record: the steps; raises InputError for an unknown operator.
        hq: the image.
        rng: draws the noise in place of the generators that the record stores. For a caller who has just drawn the
            record from it: the numbers are the same, and no generator is rebuilt.
    """
    image = hq.clamp(-1, 1).add_(1).div_(2).permute(1, 2, 0).numpy()  # [H, W, 3] in [0, 1]
    for step in record:
        arguments = {name: value for name, value in step.items() if name != "op"}
        # noise alone is random in a step; every other value stands in the record
        if rng is not None and "generator" in arguments:
            arguments["generator"] = rng
        if step["op"] not in OPERATORS:
            raise InputError("op", step["op"], f"one of {', '.join(OPERATORS)}")
        image = OPERATORS[step["op"]](image, **arguments)
    levels = torch.from_numpy(image).permute(2, 0, 1) * 255  # [3, H, W]; rounded as a PNG would be
    return levels.round_().clamp_(0, 255).div_(127.5).sub_(1).contiguous()


def target(record: Record, hq: Tensor) -> Tensor:
    """Return what the restored image should be: `hq`, gray where the record says that the pair lost its colour."""
    # a gray LQ image with a coloured HQ image teaches colourisation, with a gray one restoration
    is_gray = any(step["op"] == "gray" and step.get("target") for step in record)
    return apply([{"op": "gray"}], hq) if is_gray else hq


def degraded(hq: Tensor, degradation: Degrade, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return the pair (hq, lq) from a recipe, or from any function (hq, rng) -> lq."""
    return degradation.pair(hq, rng) if hasattr(degradation, "pair") else (hq, degradation(hq, rng))


def as_text(rng: np.random.Generator) -> str:
    """Return the state of a PCG64 generator (`numpy.random.default_rng`): four numbers, the first two hexadecimal."""
    # text, because the state's 128-bit integers are more than JSON readers of other languages hold
    state = rng.bit_generator.state
    if state["bit_generator"] != "PCG64":
        raise InputError(f"a record needs numpy.random.default_rng, not {state['bit_generator']}")
    return f"{state['state']['state']:x} {state['state']['inc']:x} {state['has_uint32']} {state['uinteger']}"


def as_generator(text: str | np.random.Generator) -> np.random.Generator:
    """Return a generator in the state that `as_text` wrote; a generator is returned unchanged."""
    if isinstance(text, np.random.Generator):
        return text
    state, inc, has_uint32, uinteger = text.split()
    bits = np.random.PCG64()  # its own seed is overwritten
    bits.state = {
        "bit_generator": "PCG64",
        "state": {"state": int(state, 16), "inc": int(inc, 16)},
        "has_uint32": int(has_uint32),  # half of a 64-bit draw may be left over
        "uinteger": int(uinteger),
    }
    return np.random.Generator(bits)
