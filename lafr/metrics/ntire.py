"""What the NTIRE 2026 challenge on real-world face restoration ranks by: a total score, behind an identity gate."""

import math
from collections.abc import Mapping, Sequence

NEEDED = ("clipiqa", "maniqa", "musiq", "niqe_pyiqa", "qalign", "fid_ffhq")
QALIGN = "qalign"

GATE_METRIC = "identity_lq_adaface"
ALLOWED = 10  # faces below the threshold, over a whole set
# benchmark -> least cosine of AdaFace's embeddings of the restored and the LQ image
THRESHOLDS = {
    "wider_test": 0.30,
    "webphoto_test": 0.30,
    "lfw_test": 0.60,
    "celebchild_test": 0.60,
    "celeba_test": 0.50,
    "celeba_test_mild": 0.50,
}


def total_score(means: Mapping[str, float], without_qalign: bool = False) -> float:
    """Return the challenge's total score of a method, higher is better.

    CLIP-IQA + MANIQA + MUSIQ / 100 + max(0, (10 - NIQE) / 10) + Q-Align / 5 + max(0, (100 - FID) / 100)

    Args:
        means: metric of `NEEDED` -> mean over the images, or the FID.
        without_qalign: leave its term out; such a sum is comparable with none of the challenge's.
    """
    terms = {
        "clipiqa": lambda value: value,
        "maniqa": lambda value: value,
        "musiq": lambda value: value / 100,
        "niqe_pyiqa": lambda value: max(0.0, (10 - value) / 10),
        QALIGN: lambda value: value / 5,
        "fid_ffhq": lambda value: max(0.0, (100 - value) / 100),
    }
    return sum(term(means[name]) for name, term in terms.items() if not (without_qalign and name == QALIGN))


def faces_below(cosines: Sequence[float], threshold: float) -> int:
    """Return how many faces are below the gate's threshold; a failed measurement (NaN) counts as below."""
    return sum(math.isnan(value) or value < threshold for value in cosines)


def passes(below: int) -> bool:
    """Return whether a method passes the gate with so many faces below the threshold."""
    return below <= ALLOWED
