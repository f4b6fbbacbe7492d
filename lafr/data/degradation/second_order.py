"""Second-order degradation: blur, resize, noise and JPEG twice, with sinc filters (Real-ESRGAN, Wang et al., 2021).

Draws and order are those of BasicSR's RealESRGANModel with OSEDiff's return to the input's size; two choices are ours:
JPEG is libjpeg's, not its differentiable approximation, and the HQ image is not sharpened first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from lafr.data.degradation.first_order import odd
from lafr.data.degradation.operators import Record, apply, as_text

Range = tuple[float, float]
KERNELS = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
SIZES = tuple(range(7, 22, 2))
MODES = ("area", "bilinear", "bicubic")


@dataclass(frozen=True)
class Pass:
    """One of the two passes.

    Args:
        blur_sigma: range in pixels at the reference resolution.
        resize: range of the factor of the sides; under 1 shrinks.
        up_down_keep: probabilities of enlarging, shrinking and keeping the size.
        noise_sigma: range of Gaussian noise, in 1/255.
        poisson_scale: range of the factor of the shot noise.
        blur: probability of any blur.
    """

    blur_sigma: Range = (0.2, 3)
    resize: Range = (0.15, 1.5)
    up_down_keep: tuple[float, float, float] = (0.2, 0.7, 0.1)
    noise_sigma: Range = (1, 30)
    poisson_scale: Range = (0.05, 3)
    blur: float = 1


@dataclass(frozen=True)
class SecondOrderDegradation:
    """Two passes and a final sinc filter; pure in (image, generator).

    Args:
        first: the first pass.
        second: the second pass, on an image smaller by `scale`.
        kernels: probability of each kind of kernel.
        kernel_size: sizes that a kernel's side is drawn from, in pixels at the reference resolution, odd.
        generalized_beta: range of the generalised Gaussian's exponent; half of the draws lie under 1.
        plateau_beta: range of the plateau's exponent; with BasicSR's (1, 2) half of the draws are 1.
        sinc: probability that a pass's kernel is a sinc filter.
        final_sinc: probability of the last sinc filter.
        gaussian: probability that noise is Gaussian, else it is shot noise.
        gray_noise: probability that noise is the same in all channels.
        jpeg_quality: whole qualities from the first up to, without, the second.
        scale: how many times smaller the image becomes before it is enlarged again.
        reference_resolution: side in pixels that the ranges are written for. At another resolution r, blur sigma and
            kernel size are multiplied by r / reference, a sinc's cutoff divided by it (at most pi), and `scale`
            multiplied by it (at least 1); the passes' resize factors, noise and JPEG are unchanged.
    """

    first: Pass = Pass()
    second: Pass = Pass((0.2, 1.5), (0.3, 1.2), (0.3, 0.4, 0.3), (1, 25), (0.05, 2.5), 0.8)
    kernels: Mapping[str, float] = field(default_factory=lambda: KERNELS)
    kernel_size: tuple[int, ...] = SIZES
    generalized_beta: Range = (0.5, 4)
    plateau_beta: Range = (1, 2)
    sinc: float = 0.1
    final_sinc: float = 0.8
    gaussian: float = 0.5
    gray_noise: float = 0.4
    jpeg_quality: tuple[int, int] = (30, 95)
    scale: float = 4
    reference_resolution: int = 512

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Record:
        """Return the steps for an image of this size."""
        ratio = width / self.reference_resolution
        # the size between the passes: scale 4 at 512 px is scale 1 at 128 px, which has lost that content already
        small = [max(1, int(side / max(1, self.scale * ratio))) for side in (height, width)]
        # first pass, on the full image
        steps = self._draw_pass(self.first, (height, width), ratio, rng)
        steps.append({"op": "jpeg", "quality": int(rng.integers(*self.jpeg_quality))})
        # second pass, on the small image
        steps += self._draw_pass(self.second, small, ratio, rng)
        jpeg = {"op": "jpeg", "quality": int(rng.integers(*self.jpeg_quality))}
        back = [_resize(small, rng)]
        if rng.random() < self.final_sinc:
            kernel = self._draw_sinc(int(rng.choice(self.kernel_size)), np.pi / 3, ratio, rng)
            back.append({"op": "blur", "kernel": kernel})
        # half of the time JPEG comes last, so that its blocks are aligned with the small image's pixels
        steps += [*back, jpeg] if rng.random() < 0.5 else [jpeg, *back]
        # back to the input's size, as OSEDiff: restoration here is no super-resolution
        return [*steps, _resize((height, width), rng)]

    def _draw_pass(self, ranges: Pass, size: Sequence[int], ratio: float, rng: np.random.Generator) -> Record:
        """Return blur, resize and noise of one pass."""
        steps: Record = []
        kernel = self._draw_kernel(ranges, ratio, rng)
        # the kernel is drawn whether or not it is used, and no number is drawn for a certain blur
        if ranges.blur == 1 or rng.random() < ranges.blur:
            steps.append({"op": "blur", "kernel": kernel})
        low, high = ranges.resize
        kind = ("up", "down", "keep")[rng.choice(3, p=ranges.up_down_keep)]
        factor = 1.0
        if kind != "keep":
            factor = rng.uniform(1, high) if kind == "up" else rng.uniform(low, 1)
        steps.append(_resize([max(1, int(side * factor)) for side in size], rng))
        if rng.random() < self.gaussian:
            noise = {"op": "gaussian_noise", "sigma": rng.uniform(*ranges.noise_sigma)}
        else:
            noise = {"op": "poisson_noise", "scale": rng.uniform(*ranges.poisson_scale)}
        gray = bool(rng.random() < self.gray_noise)
        # a generator for each noise: the record stores its state, and the draws that follow don't depend on the noise
        own = np.random.default_rng(rng.integers(2**63))
        return [*steps, noise | {"gray": gray, "generator": as_text(own)}]

    def _draw_kernel(self, ranges: Pass, ratio: float, rng: np.random.Generator) -> dict:
        size = int(rng.choice(self.kernel_size))
        # small sinc kernels have a higher lowest cutoff: they cannot hold a longer ripple
        if rng.random() < self.sinc:
            return self._draw_sinc(size, np.pi / 3 if size < 13 else np.pi / 5, ratio, rng)
        kind = rng.choice(len(self.kernels), p=list(self.kernels.values()))
        family, _, shape = list(self.kernels)[kind].rpartition("_")  # "plateau_iso"; plain "iso" has no family
        sigma_x, sigma_y = rng.uniform(*ranges.blur_sigma, 2) * ratio  # pixels of this image
        is_round = shape == "iso"
        kernel = {
            "family": family or "gaussian",
            "size": odd(size * ratio),
            "sigma_x": float(sigma_x),
            "sigma_y": float(sigma_x if is_round else sigma_y),
            "theta": 0.0 if is_round else rng.uniform(-np.pi, np.pi),
        }
        if family:
            # half of the exponents lie under 1, although 1 is not the middle of the range
            low, high = self.generalized_beta if family == "generalized" else self.plateau_beta
            kernel["beta"] = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        return kernel

    def _draw_sinc(self, size: int, lowest: float, ratio: float, rng: np.random.Generator) -> dict:
        cutoff = min(np.pi, rng.uniform(lowest, np.pi) / ratio)  # pi is the highest frequency that pixels hold
        return {"family": "sinc", "size": odd(size * ratio), "cutoff": float(cutoff)}

    def __call__(self, hq: Tensor, rng: np.random.Generator) -> Tensor:
        """Return `lq`, degraded `hq`: both `[3, H, W]` in [-1, 1], 8-bit levels, same size."""
        height, width = hq.shape[-2:]
        return apply(self.draw(height, width, rng), hq)


def _resize(size: Sequence[int], rng: np.random.Generator) -> dict:
    height, width = size
    return {"op": "resize", "height": int(height), "width": int(width), "mode": str(rng.choice(MODES))}
