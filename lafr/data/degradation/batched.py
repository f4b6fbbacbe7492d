"""The first-order chain for a batch of tensors, on any device: the same definitions and records as on the CPU.

Where `lafr.data.degradation.operators.apply` takes one image and OpenCV, this takes a batch and PyTorch: the blur is a
product of Fourier transforms, images of different sizes share a canvas, JPEG is `lafr.data.degradation.jpeg`. In
float64 no result depends on a machine's rounding, so the 8-bit pixels are the same everywhere: test sets are made so.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as tv

from lafr.data.degradation.jpeg import jpeg_roundtrip, take
from lafr.data.degradation.kernels import make_kernel
from lafr.data.degradation.operators import Record, as_generator
from lafr.data.degradation.resampling import bilinear
from lafr.errors import InputError

CHAIN = ["blur_down", "gaussian_noise", "jpeg", "resize"]
COLOUR = ("colour_shift", "colour_jitter", "gray")


def apply_batch(records: Sequence[Record], hq: Tensor) -> Tensor:
    """Return `lq`: each image of `hq` after its record's steps, both `[B, 3, H, W]` in [-1, 1]; 8-bit levels.

    Works in the type and on the device of `hq`. In float64 the pixels are those of every other machine. In either type
    99.9 % of them lie within one level of `apply`'s and 99 % are equal; elsewhere a rounding flipped a JPEG
    coefficient.

    Raises InputError for records of another chain than blur, down, noise, JPEG, up and changes of colour.
    """
    for record in records:
        names = [step["op"] for step in record]
        if names[:4] != CHAIN or set(names[4:]) - set(COLOUR) or record[3]["mode"] != "bilinear":
            raise InputError(f"a batch can only be degraded in one pass ({', '.join(CHAIN)}), not {', '.join(names)}")
    blurs, noises, jpegs, _ = (list(steps) for steps in zip(*(record[:4] for record in records), strict=True))
    height, width = hq.shape[-2:]
    image = blurred(((hq.clamp(-1, 1) + 1) / 2), [make_kernel(**step["kernel"]) for step in blurs])
    sizes = torch.tensor([[max(1, int(side / step["factor"])) for side in (height, width)] for step in blurs])
    canvas = [16 * -(-int(side) // 16) for side in sizes.amax(0)]
    image = resized(image, torch.tensor([[height, width]] * len(records)), sizes, canvas)
    image = (image + noise_fields(noises, sizes, canvas).to(image)).clamp(0, 1)
    quality = torch.tensor([step["quality"] for step in jpegs], device=hq.device)
    image = jpeg_roundtrip((image * 255).round().double(), quality, sizes.to(hq.device)).to(hq.dtype) / 255
    image = resized(image, sizes, torch.tensor([[height, width]] * len(records)), (height, width))
    for i, record in enumerate(records):
        for step in record[4:]:
            image[i] = colour(image[i], step)
    return (image * 255).round().clamp(0, 255) / 127.5 - 1


def blurred(image: Tensor, kernels: Sequence[np.ndarray]) -> Tensor:
    """Return `[B, 3, H, W]` filtered with each image's kernel under a mirrored border (a product of spectra)."""
    height, width = image.shape[-2:]
    half = max(kernel.shape[0] for kernel in kernels) // 2
    index = [torch.from_numpy(_mirrored(side, half)).to(image.device) for side in (height, width)]
    padded = image[:, :, index[0]][..., index[1]]
    taps = torch.zeros(len(kernels), 1, *padded.shape[-2:], dtype=image.dtype)
    for i, kernel in enumerate(kernels):
        taps[i, 0, : kernel.shape[0], : kernel.shape[1]] = torch.from_numpy(kernel)
        # filtering is correlation: the kernel's centre goes to the origin, turned by half a turn
        taps[i, 0] = taps[i, 0].roll((-(kernel.shape[0] // 2),) * 2, (0, 1))
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(taps.to(image.device)).conj()
    return torch.fft.irfft2(spectrum, s=padded.shape[-2:])[..., half : half + height, half : half + width]


def _mirrored(length: int, half: int) -> np.ndarray:
    period = max(1, 2 * (length - 1))
    position = np.arange(-half, length + half) % period
    return np.minimum(position, period - position) if length > 1 else position * 0


def resized(image: Tensor, sizes: Tensor, new_sizes: Tensor, canvas: Sequence[int]) -> Tensor:
    """Return each image, of `sizes [B, 2]` within `image`, bilinearly resized to `new_sizes [B, 2]` within `canvas`."""
    for axis in (0, 1):
        before, weight = zip(*(bilinear(int(a), int(b)) for a, b in zip(sizes[:, axis], new_sizes[:, axis],
                                                                        strict=True)), strict=True)  # fmt: skip
        pad = [(0, canvas[axis] - len(b)) for b in before]
        before = torch.from_numpy(np.stack([np.pad(b, p) for b, p in zip(before, pad, strict=True)]))
        weight = torch.from_numpy(np.stack([np.pad(w, p) for w, p in zip(weight, pad, strict=True)])).to(image)
        after = torch.minimum(before + 1, sizes[:, axis, None] - 1)
        weight = weight[:, None, :, None] if axis == 0 else weight[:, None, None, :]
        image = take(image, before, 2 + axis) * (1 - weight) + take(image, after, 2 + axis) * weight
    return image


def noise_fields(steps: Sequence[dict], sizes: Tensor, canvas: Sequence[int]) -> Tensor:
    """Return `[B, 3, *canvas]` float32: each image's field, drawn where its record says, times its sigma."""
    fields = torch.zeros(len(steps), 3, *canvas)
    for field, step, (height, width) in zip(fields, steps, sizes.tolist(), strict=True):
        drawn = as_generator(step["generator"]).standard_normal((height, width, 3), dtype=np.float32)
        field[:, :height, :width] = torch.from_numpy(drawn * np.float32(step["sigma"] / 255)).permute(2, 0, 1)
    return fields


def colour(image: Tensor, step: dict) -> Tensor:
    """Return `[3, H, W]` in [0, 1] after one of `COLOUR`."""
    if step["op"] == "colour_shift":
        return (image + torch.tensor(step["shift"]).to(image)[:, None, None] / 255).clamp(0, 1)
    if step["op"] == "gray":
        luma = torch.tensor([0.299, 0.587, 0.114]).to(image)
        return (image * luma[:, None, None]).sum(0, keepdim=True).expand_as(image)
    for name, factor in step["changes"]:
        image = getattr(tv, f"adjust_{name}")(image, factor)
    return image
