"""The first-order chain on a batch of tensors, on any device, from the same records as on the CPU.

`lafr.data.degradation.operators.apply` degrades one image with OpenCV; this degrades a batch with PyTorch: the blur is
a product of Fourier transforms, images of different sizes share a canvas, JPEG is `lafr.data.degradation.jpeg`. In
float64 the 8-bit pixels do not depend on a machine's rounding, which is why test sets are made with it.
"""

import math
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

    Works in the dtype and on the device of `hq`; float64 gives the same pixels on every machine. In either dtype
    99.9 % of the pixels lie within one level of `apply`'s and 99 % are equal; in the others a rounding changed a JPEG
    coefficient.

    Raises InputError for records of another chain than blur, down, noise, JPEG, up and changes of colour.
    """
    for record in records:
        names = [step["op"] for step in record]
        if names[:4] != CHAIN or set(names[4:]) - set(COLOUR) or record[3]["mode"] != "bilinear":
            raise InputError(f"a batch can only be degraded in one pass ({', '.join(CHAIN)}), not {', '.join(names)}")
    blurs, noises, jpegs = list(zip(*records, strict=False))[:3]  # the steps of CHAIN, one of each record
    height, width = hq.shape[-2:]
    full = torch.tensor([height, width]).expand(len(records), 2)  # [B, 2]
    # [B, 2]: factors differ, and so do the sizes of the small images
    small = torch.tensor([[max(1, int(height / s["factor"])), max(1, int(width / s["factor"]))] for s in blurs])
    canvas = [16 * math.ceil(side / 16) for side in small.amax(0).tolist()]  # JPEG's 16 x 16 blocks, chroma halved

    image = blurred((hq.clamp(-1, 1) + 1) / 2, [make_kernel(**step["kernel"]) for step in blurs])  # [B, 3, H, W]
    image = resized(image, full, small, canvas)  # [B, 3, *canvas]
    image = (image + noise_fields(noises, small, canvas).to(image)).clamp(0, 1)
    quality = torch.tensor([step["quality"] for step in jpegs], device=hq.device)
    # JPEG is exact integer arithmetic, which float64 holds and float32 does not
    image = jpeg_roundtrip((image * 255).round().double(), quality, small.to(hq.device)).to(hq.dtype) / 255
    image = resized(image, small, full, (height, width))  # [B, 3, H, W]
    for i, record in enumerate(records):
        for step in record[4:]:
            image[i] = colour(image[i], step)
    return (image * 255).round().clamp(0, 255) / 127.5 - 1


def blurred(image: Tensor, kernels: Sequence[np.ndarray]) -> Tensor:
    """Return `[B, 3, H, W]` filtered with each image's own kernel under a mirrored border.

    By the correlation theorem: filtering is IFFT(FFT(image) conj(FFT(kernel))), whatever the kernel's size.
    """
    height, width = image.shape[-2:]
    half = max(kernel.shape[0] for kernel in kernels) // 2  # the border must reach as far as the largest kernel
    index = [torch.from_numpy(_mirrored(side, half)).to(image.device) for side in (height, width)]
    padded = image[:, :, index[0]][..., index[1]]
    taps = torch.zeros(len(kernels), 1, *padded.shape[-2:], dtype=image.dtype)
    for i, kernel in enumerate(kernels):
        taps[i, 0, : kernel.shape[0], : kernel.shape[1]] = torch.from_numpy(kernel)
        # the kernel's centre goes to the origin, or the image would be shifted by half a kernel
        taps[i, 0] = taps[i, 0].roll((-(kernel.shape[0] // 2),) * 2, (0, 1))
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(taps.to(image.device)).conj()
    return torch.fft.irfft2(spectrum, s=padded.shape[-2:])[..., half : half + height, half : half + width]


def _mirrored(length: int, half: int) -> np.ndarray:
    """Return the pixels under `length` positions and `half` more at each end, mirrored: 2 1 0 1 2 ... (REFLECT_101)."""
    period = max(1, 2 * (length - 1))
    position = np.arange(-half, length + half) % period
    return np.minimum(position, period - position) if length > 1 else position * 0


def resized(image: Tensor, sizes: Tensor, new_sizes: Tensor, canvas: Sequence[int]) -> Tensor:
    """Return each image, of `sizes [B, 2]` within `image`, bilinearly resized to `new_sizes [B, 2]` within `canvas`."""
    for axis in (0, 1):  # rows, then columns: bilinear interpolation is separable
        before = torch.zeros(len(image), canvas[axis], dtype=torch.int64)  # [B, n]: the pixel before each sample
        weight = torch.zeros(len(image), canvas[axis], dtype=torch.float64)  # [B, n]: share of the pixel after it
        lengths = zip(sizes[:, axis].tolist(), new_sizes[:, axis].tolist(), strict=True)
        for i, (length, samples) in enumerate(lengths):
            own_before, own_weight = bilinear(length, samples)
            before[i, :samples] = torch.from_numpy(own_before)
            weight[i, :samples] = torch.from_numpy(own_weight)
        after = torch.minimum(before + 1, sizes[:, axis, None] - 1)  # not beyond the image's own border
        weight = weight.to(image)
        weight = weight[:, None, :, None] if axis == 0 else weight[:, None, None, :]
        image = take(image, before, 2 + axis) * (1 - weight) + take(image, after, 2 + axis) * weight
    return image


def noise_fields(steps: Sequence[dict], sizes: Tensor, canvas: Sequence[int]) -> Tensor:
    """Return `[B, 3, *canvas]` float32: each image's noise, drawn by its record's generator, times its sigma."""
    fields = torch.zeros(len(steps), 3, *canvas)
    for field, step, (height, width) in zip(fields, steps, sizes.tolist(), strict=True):
        # drawn as [h, w, 3], as for one image: the same numbers in the same places
        drawn = as_generator(step["generator"]).standard_normal((height, width, 3), dtype=np.float32)
        field[:, :height, :width] = torch.from_numpy(drawn * np.float32(step["sigma"] / 255)).permute(2, 0, 1)
    return fields


def colour(image: Tensor, step: dict) -> Tensor:
    """Return `[3, H, W]` in [0, 1] after one of `COLOUR`."""
    if step["op"] == "colour_shift":
        return (image + torch.tensor(step["shift"]).to(image)[:, None, None] / 255).clamp(0, 1)
    if step["op"] == "gray":
        luma = torch.tensor([0.299, 0.587, 0.114]).to(image)  # ITU-R BT.601
        return (image * luma[:, None, None]).sum(0, keepdim=True).expand_as(image)
    for name, factor in step["changes"]:
        image = getattr(tv, f"adjust_{name}")(image, factor)
    return image
