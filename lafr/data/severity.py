"""Which of the two test sets called CelebA-Test a folder is: their PSNR of LQ against HQ differs."""

from collections.abc import Sequence

import numpy as np

from lafr.errors import InputError, setting

# Mean PSNR in dB that separates the two. The mild LQ (GFPGAN's) has 25.35 ("Input" in BFRffusion's table). For the
# severe one (DAEFR's) none is published; restorations of it have 19.5 to 22.2. The two degradations, drawn on 72 other
# aligned faces, give 25.9 and 22.7. The boundary is midway between 22 and 25.
BOUNDARY = 23.5
MARGIN = 1.0  # dB on either side in which a set may be either: nothing is refused there
SETS = {"severe": "celeba_test", "mild": "celeba_test_mild"}


def psnr(lq: np.ndarray, hq: np.ndarray) -> float:
    """Return PSNR in dB of 8-bit RGB `[H, W, 3]`; infinite for equal images."""
    # uint8 differences would wrap around
    mse = np.square(lq.astype(np.float64) - hq).mean()
    return float(10 * np.log10(255**2 / mse)) if mse else float("inf")


def sharpness(image: np.ndarray) -> float:
    """Return the mean squared difference of neighbouring pixels of 8-bit RGB `[H, W, 3]`."""
    values = image.astype(np.float64)
    return float(np.square(np.diff(values, axis=0)).mean() + np.square(np.diff(values, axis=1)).mean())


def severity_of(mean: float) -> str:
    """Return "severe" or "mild" of a set's mean PSNR of LQ against HQ."""
    return "severe" if mean < BOUNDARY else "mild"


def is_clear(mean: float) -> bool:
    """Return whether a mean PSNR is far enough from the boundary to tell the two sets apart."""
    return abs(mean - BOUNDARY) > MARGIN


def require_severity(expected: str, values: Sequence[float], sharper: Sequence[bool]) -> dict:
    """Return what was measured of a set of pairs; raises InputError if it is clearly the other set.

    Args:
        expected: severe or mild.
        values: PSNR of each LQ image against its HQ image, in dB.
        sharper: for each pair, whether the LQ image is the sharper one; if most are, LQ and HQ are swapped.
    """
    if same := sum(np.isinf(values)):
        raise InputError(
            f"{same} of {len(values)} LQ images equal their HQ image",
            remedy=f"give the degraded ones as {setting('source')}",
        )
    if np.mean(sharper) > 0.5:
        raise InputError(
            f"LQ and HQ are swapped: in {sum(sharper)} of {len(values)} pairs the LQ image is the sharper one",
            remedy=f"give the degraded images as {setting('source')}, the ground truth as {setting('source_hq')}",
        )
    mean = float(np.mean(values))  # of PSNRs, as the papers average, not the PSNR of the mean error
    found = severity_of(mean)
    if found != expected and is_clear(mean):
        raise InputError(
            f"this is not {SETS[expected]}: the mean PSNR of LQ against HQ is {mean:.2f} dB, as in the {found} set "
            f"(under {BOUNDARY} dB severe, else mild)",
            remedy=f"run with {setting('dataset', SETS[found])}, or, knowing that it is the right set, with "
            f"{setting('Preparation.severity', None)}",
        )
    return {"severity": found if is_clear(mean) else "near the boundary", "psnr_rgb_mean": round(mean, 4)}
