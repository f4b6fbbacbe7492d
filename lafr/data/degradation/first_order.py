"""First-order degradation: blur -> bilinear down -> Gaussian noise -> JPEG -> bilinear up.

The order is GFPGAN's (Wang et al., CVPR 2021, Eq. 8), the default ranges are OSEDiff's for faces. `Degradation` draws a
record; `lafr.data.degradation.operators.apply` runs it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lafr.data.degradation.operators import Record, apply, as_text, target
from lafr.errors import InputError

Range = tuple[float, float]


def odd(size: float) -> int:
    """Return the odd number nearest to `size`, at least 3: a kernel needs a centre."""
    return max(3, 2 * round((size - 1) / 2) + 1)


def first_order(
    height: int,
    width: int,
    kernel_size: int,
    sigma_x: float,
    sigma_y: float,
    theta: float,
    factor: float,
    noise_sigma: float,
    quality: int,
    generator: str,
) -> Record:
    """Return the record of the chain for an image of this size: lengths in its pixels, noise in 1/255.

    LQ = up(JPEG_q(down_r(HQ * k_sigma) + n_delta)), GFPGAN, Eq. 8.
    """
    kernel = {
        "family": "gaussian",
        "size": kernel_size,
        "sigma_x": float(sigma_x),
        "sigma_y": float(sigma_y),
        "theta": float(theta),
    }
    # JPEG comes before the enlargement: its 8 x 8 blocks grow with the image
    return [
        {"op": "blur_down", "kernel": kernel, "factor": float(factor)},
        {"op": "gaussian_noise", "sigma": float(noise_sigma), "generator": generator},
        {"op": "jpeg", "quality": quality},
        {"op": "resize", "height": height, "width": width, "mode": "bilinear"},
    ]


@dataclass(frozen=True)
class Degradation:
    """The first-order chain; pure in (image, generator).

    >>> import numpy as np, torch
    >>> from lafr import Degradation
    >>> lq = Degradation(noise_sigma=(0, 15))(torch.zeros(3, 64, 64), np.random.default_rng(0))
    >>> lq.shape
    torch.Size([3, 64, 64])

    Args:
        blur_sigma: range in pixels at `reference_resolution`.
        down: range of the downscale factor at `reference_resolution`; under 1 enlarges.
        noise_sigma: range in 1/255.
        jpeg_quality: whole qualities from the first up to, without, the second, 1..101. BasicSR draws a real number
            between them, and OpenCV truncates it.
        kernel_size: side of the blur kernel in pixels at `reference_resolution`, odd.
        isotropic: probability that the blur is round.
        colour_shift: range of what is added to each channel, in 1/255, with probability `colour_shift_probability`.
        colour_jitter: range of the factor of each of torchvision's brightness, contrast, saturation and hue, applied in
            random order with probability `colour_jitter_probability`.
        gray: probability that the colour is lost.
        gray_target: whether the HQ image of a pair becomes gray too: the model restores, it does not colourise.
        reference_resolution: side in pixels that the ranges are written for. At another resolution r, blur sigma,
            kernel and downscale factor are multiplied by r / reference: the same content is lost. A factor of 1 or more
            remains at least 1. Noise, JPEG and colour act on pixel values and are unchanged.
    """

    blur_sigma: Range = (1, 15)
    down: Range = (1, 30)
    noise_sigma: Range = (0, 20)
    jpeg_quality: tuple[int, int] = (30, 100)
    kernel_size: int = 41
    isotropic: float = 0.5
    colour_shift: Range = (-20, 20)
    colour_shift_probability: float = 0
    colour_jitter: Mapping[str, Range] | None = None
    colour_jitter_probability: float = 0
    gray: float = 0
    gray_target: bool = False
    reference_resolution: int = 512

    def __post_init__(self) -> None:
        low, high = self.jpeg_quality
        if not 1 <= low < high <= 101:
            raise InputError("jpeg_quality", [low, high], "a range within 1..101, whose upper end is not drawn")
        if self.kernel_size % 2 == 0:
            raise InputError("kernel_size", self.kernel_size, "odd")

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Record:
        """Return the steps for an image of this size; the next number that `rng` gives is the noise's first.

        The order of the draws decides every published set: it must not change.
        """
        scale = width / self.reference_resolution  # 1/4 for a 128 px miniature of a 512 px recipe
        # both sigmas are drawn even where the kernel is round: every image takes the same number of draws
        sigma_x, sigma_y = rng.uniform(*self.blur_sigma, 2) * scale
        if rng.random() < self.isotropic:
            sigma_y = sigma_x
        theta = rng.uniform(-np.pi, np.pi)
        factor = rng.uniform(*self.down)
        factor = max(min(1.0, factor), factor * scale)  # what shrinks must not enlarge at a smaller resolution
        noise_sigma = rng.uniform(*self.noise_sigma)
        # noise and JPEG in pixel values: they don't scale
        quality = int(rng.integers(*self.jpeg_quality))
        colour = self._draw_colour(rng)
        # the kernel shrinks with the image; sigma up to 15 px in 41 px is cut off at 1.4 sigma, as in the papers
        size = odd(self.kernel_size * scale)
        chain = first_order(height, width, size, sigma_x, sigma_y, theta, factor, noise_sigma, quality, as_text(rng))
        return [*chain, *colour]

    def _draw_colour(self, rng: np.random.Generator) -> Record:
        steps: Record = []
        # GFPGAN's order, each with its own probability
        if self.colour_shift_probability and rng.random() < self.colour_shift_probability:
            steps.append({"op": "colour_shift", "shift": rng.uniform(*self.colour_shift, 3).tolist()})
        if self.gray and rng.random() < self.gray:
            steps.append({"op": "gray", "target": self.gray_target})
        if self.colour_jitter and rng.random() < self.colour_jitter_probability:
            # ColorJitter's random order: contrast after brightness differs from brightness after contrast
            names = list(self.colour_jitter)
            order = [names[i] for i in rng.permutation(len(names))]
            changes = [[name, float(rng.uniform(*self.colour_jitter[name]))] for name in order]
            steps.append({"op": "colour_jitter", "changes": changes})
        return steps

    def pair(self, hq: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Return the training pair (hq, lq); hq is gray where `gray_target` says so."""
        height, width = hq.shape[-2:]
        record = self.draw(height, width, rng)
        # rng stands where the noise begins, so apply continues with it instead of rebuilding a generator
        return target(record, hq), apply(record, hq, rng)

    def __call__(self, hq: Tensor, rng: np.random.Generator) -> Tensor:
        """Return `lq`, degraded `hq`: both `[3, H, W]` in [-1, 1], 8-bit levels, same size."""
        return self.pair(hq, rng)[1]
