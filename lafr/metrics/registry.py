"""The record of each metric: every fact that tables, cards, protocols, plots and published values need, stated once.

A metric of LAFR's has its record in `METRICS` below. One's own, in a module outside LAFR, describes itself with
`register`, or with attributes of the record's field names; `describe` returns the record of either. This module
imports no network, so that tables of stored results are made without torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from lafr.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs

HIGHER, LOWER = "↑", "↓"


class SetMetric(Protocol):
    """A metric of a whole set by the features of its images (FID, KID)."""

    def features(self, image: "Tensor") -> "Tensor":
        """Return the features `[B, D]` of images `[B, 3, R, R]`."""

    def score(self, features: "Tensor", reference: "Tensor | None", seed: int) -> dict[str, float]:
        """Return mean, low and high."""


ImageMetric = Callable[["Tensor", "Tensor | None"], "Tensor"]  # (restored, HQ) [B, 3, R, R] -> one number for each, [B]
Metric = ImageMetric | SetMetric


@dataclass(frozen=True)
class MetricRecord:
    """Facts of one metric.

    Args:
        name: as in YAML, logs and result files.
        definition: what exactly is computed, in one line.
        label: what papers call it, for LaTeX tables and figures; `name` when empty.
        unit: of its values; empty for a number without one.
        direction: `HIGHER` where more is better, `LOWER` where less is; empty where neither is known.
        digits: decimals shown.
        implementation: dotted path of the function or class; empty for a metric that only others measure.
        networks: pretrained networks it needs, by their names in `lafr.networks.NETWORKS` or `lafr.weights.EXTERNAL`.
        needs_reference: whether it compares with the ground truth; a set metric then gets the features of it.
        min_side: smallest image side in pixels for which it is defined.
        aspect: what it says of a restored image: "pixels", "perception", "identity", "landmarks" or "realism".
        quantity: the quantity in `lafr.evaluation.protocols` that it is one definition of.
        printed: names in `data/published.csv` that may mean this metric.
        plausible: lowest and highest mean over a benchmark that is no misprint.
    """

    name: str
    definition: str = ""
    label: str = ""
    unit: str = ""
    direction: str = ""
    digits: int = 4
    implementation: str = ""
    networks: tuple[str, ...] = ()
    needs_reference: bool = True
    min_side: int = 0
    aspect: str = ""
    quantity: str = ""
    printed: tuple[str, ...] = ()
    plausible: tuple[float, float] = (float("-inf"), float("inf"))

    def __post_init__(self) -> None:
        if self.direction not in (HIGHER, LOWER, ""):
            raise InputError("direction", self.direction, f"{HIGHER}, {LOWER} or empty")
        if not self.label:
            object.__setattr__(self, "label", self.name)


ATTRIBUTES = ("definition", "label", "unit", "direction", "digits", "needs_reference", "min_side", "aspect")
METRICS: dict[str, MetricRecord] = {}


def add(record: MetricRecord) -> None:
    """Add a record; raises InputError when another implementation has its name."""
    known = METRICS.get(record.name)
    if known is not None and known.implementation != record.implementation:
        raise InputError("name", record.name, f"a name that {known.implementation} does not have")
    METRICS[record.name] = record


def register(name: str, **facts: Any) -> Callable[[Callable], Callable]:
    """Decorate the function or class of one's own metric with its facts, the fields of `MetricRecord`.

    The definition is the first line of its docstring where none is given:

        @register("mae", label="MAE", direction=LOWER, digits=2)
        def mean_absolute_error(image, hq): ...
    """

    def describe_it(metric: Callable) -> Callable:
        own = {"definition": _first_line(metric), "implementation": _dotted(metric)}
        add(MetricRecord(name, **{**own, **facts}))
        return metric

    return describe_it


def describe(name: str, metric: Any = None) -> MetricRecord:
    """Return the record of the metric called `name`, whether or not it is registered.

    Args:
        name: in YAML.
        metric: the built metric, or its class. What it says in attributes of the names `ATTRIBUTES` is taken for a
            fact: all there is of an unregistered metric, or what depends on its settings (a FID needs the ground
            truth unless it compares with stored statistics).
    """
    maker = metric.func if isinstance(metric, partial) else metric
    record = METRICS.get(name)
    if record is None:
        record = MetricRecord(name) if maker is None else _unregistered(name, maker)
    return replace(record, **{key: getattr(maker, key) for key in ATTRIBUTES if hasattr(maker, key)})


def is_set_metric(metric: Metric) -> "TypeIs[SetMetric]":
    """Return whether a metric scores a whole set by the features of its images (FID, KID), not image by image."""
    return hasattr(metric, "features") and hasattr(metric, "score")


def first_of(aspects: tuple[str, ...], metrics: list[str]) -> str | None:
    """Return the first registered metric of the first of `aspects` that is among `metrics`; None without any."""
    for aspect in aspects:
        for name, record in METRICS.items():
            if record.aspect == aspect and name in metrics:
                return name
    return None


def _unregistered(name: str, maker: Callable) -> MetricRecord:
    # another setting of a registered class: what depends on the code alone holds for it too
    maker = maker if hasattr(maker, "__qualname__") else type(maker)
    dotted = _dotted(maker)
    related = next((record for record in METRICS.values() if record.implementation == dotted), MetricRecord(name))
    kept = {key: getattr(related, key) for key in ATTRIBUTES if key not in ("definition", "label")}
    return MetricRecord(name, _first_line(maker), implementation=dotted, **kept)


def _first_line(maker: Callable) -> str:
    return (maker.__doc__ or "").strip().split("\n")[0]


def _dotted(maker: Callable) -> str:
    return f"{maker.__module__}.{maker.__qualname__}"


_SSIM = "Gaussian window 11 of sigma 1.5, population covariance, border mirrored"
_ARCFACE = "angle between embeddings of ArcFace's gray ResNet-18, the whole crop at 128 px"
_COSINE = "cosine of the embeddings of restored and HQ"
# Kinds of metrics: the facts that several records below share.
_pixels = partial(MetricRecord, aspect="pixels", direction=HIGHER)
_psnr = partial(_pixels, unit="dB", digits=2, quantity="PSNR", printed=("psnr",), plausible=(10, 40))
_ssim = partial(_pixels, quantity="SSIM", printed=("ssim",), plausible=(0.2, 1))
_perception = partial(MetricRecord, aspect="perception", direction=LOWER, plausible=(0, 1))
_lpips = partial(_perception, quantity="LPIPS", implementation="lafr.metrics.perceptual.LPIPS")
_st_lpips = partial(_perception, quantity="LPIPS", implementation="lafr.metrics.perceptual.ShiftTolerantLPIPS")
_fid = partial(
    MetricRecord,
    aspect="realism",
    direction=LOWER,
    digits=2,
    implementation="lafr.metrics.distribution.FID",
    networks=("inception_2015",),
    plausible=(0, 300),
)
_fid_ffhq = partial(_fid, quantity="FID to FFHQ", needs_reference=False, printed=("fid_ffhq",))
_niqe = partial(
    MetricRecord,
    aspect="realism",
    direction=LOWER,
    digits=3,
    quantity="NIQE",
    networks=("niqe_pristine",),
    needs_reference=False,
    min_side=192,
    printed=("niqe",),
    plausible=(1, 20),
)
_pyiqa = partial(
    MetricRecord,
    aspect="realism",
    direction=HIGHER,
    implementation="lafr.metrics.realism.PyIQA",
    needs_reference=False,
    plausible=(0, 1),
)
_identity = partial(MetricRecord, aspect="identity", quantity="Identity")
_cosines = partial(_identity, direction=HIGHER, implementation="lafr.metrics.face.IdentityCosine")
_deg = partial(
    MetricRecord,
    aspect="identity",
    direction=LOWER,
    unit="degrees",
    digits=2,
    quantity="Deg",
    implementation="lafr.metrics.face.Deg",
    networks=("arcface_resnet18",),
    printed=("deg",),
    plausible=(0, 90),
)
_lmd = partial(
    MetricRecord,
    aspect="landmarks",
    direction=LOWER,
    unit="pixels at 512",
    quantity="LMD",
    implementation="lafr.metrics.face.LMD",
    plausible=(0, 50),
)

_RECORDS = (
    _psnr(
        "psnr_rgb",
        "RGB, 8-bit, no crop; mean of the images' dB",
        "PSNR",
        implementation="lafr.metrics.fidelity.psnr_rgb",
    ),
    _psnr(
        "psnr_y",
        "Y of BT.601 (16 to 235), 8-bit RGB, no crop; mean of the images' dB",
        "PSNR (Y)",
        implementation="lafr.metrics.fidelity.psnr_y",
    ),
    _ssim("ssim_rgb", f"mean over R, G and B; {_SSIM}", "SSIM", implementation="lafr.metrics.fidelity.ssim_rgb"),
    _ssim("ssim_y", f"Y of BT.601 (16 to 235); {_SSIM}", "SSIM (Y)", implementation="lafr.metrics.fidelity.ssim_y"),
    _lpips(
        "lpips_vgg",
        "LPIPS 0.1, VGG16, RGB in [-1, 1], at the images' own size",
        "LPIPS (VGG)",
        networks=("lpips_vgg", "torchvision_vgg16"),
        printed=("lpips", "lpips_vgg"),
    ),
    _lpips(
        "lpips_alex",
        "LPIPS 0.1, AlexNet, RGB in [-1, 1], at the images' own size",
        "LPIPS (AlexNet)",
        networks=("lpips_alex", "torchvision_alexnet"),
        printed=("lpips",),
    ),
    _perception(
        "dists",
        "DISTS, VGG16, RGB in [0, 1], at the images' own size",
        "DISTS",
        quantity="DISTS",
        implementation="lafr.metrics.perceptual.DISTS",
        networks=("dists",),
        printed=("dists",),
    ),
    _st_lpips(
        "st_lpips_vgg",
        "shift-tolerant LPIPS, VGG16; not comparable with LPIPS",
        "ST-LPIPS (VGG)",
        networks=("st_lpips_vgg",),
    ),
    _st_lpips(
        "st_lpips_alex",
        "shift-tolerant LPIPS, AlexNet; not comparable with LPIPS",
        "ST-LPIPS (AlexNet)",
        networks=("st_lpips_alex",),
    ),
    _fid_ffhq("fid_ffhq", "FID to FFHQ at 512 px, all 70,000 images", "FID-FFHQ"),
    _fid_ffhq("fid_ffhq_50k", "FID to FFHQ at 512 px, 50,000 of its images", "FID-FFHQ (50k)"),
    _fid("fid_hq", "FID to the set's own HQ images", "FID-HQ", quantity="FID to the HQ images", printed=("fid_hq",)),
    MetricRecord(
        "kid",
        "KID to the set's own HQ images: cubic kernel, mean over 100 subsets of up to 1,000",
        "KID",
        direction=LOWER,
        implementation="lafr.metrics.distribution.KID",
        networks=("inception_2015",),
        aspect="realism",
        quantity="FID to the HQ images",
        printed=("kid",),
        plausible=(0, 0.5),
    ),
    _niqe(
        "niqe",
        "Y of BT.601 rounded, blocks of 96 px, LIVE's pristine model",
        "NIQE",
        implementation="lafr.metrics.niqe.NIQE",
    ),
    _niqe(
        "niqe_pyiqa",
        "Y of YIQ (0 to 255) rounded, blocks of 96 px, LIVE's pristine model",
        "NIQE (pyiqa)",
        implementation="lafr.metrics.realism.PyIQANIQE",
    ),
    _pyiqa(
        "musiq",
        "MUSIQ trained on KonIQ-10k, 0 to 100",
        "MUSIQ",
        digits=2,
        networks=("musiq_koniq",),
        quantity="MUSIQ",
        printed=("musiq",),
        plausible=(0, 100),
    ),
    _pyiqa(
        "maniqa",
        "MANIQA trained on KonIQ-10k, 20 crops of 224 px, 0 to 1",
        "MANIQA",
        networks=("maniqa_koniq",),
        quantity="MANIQA",
        printed=("maniqa",),
    ),
    _pyiqa(
        "clipiqa",
        "CLIP-IQA, RN50, pyiqa's five pairs of prompts, 0 to 1",
        "CLIP-IQA",
        networks=("clip_rn50",),
        quantity="CLIP-IQA",
        printed=("clipiqa",),
    ),
    _pyiqa(
        "topiq_face",
        "TOPIQ for faces trained on CGFIQA-40k, 512 px, no alignment of its own, 0 to 1",
        "TOPIQ (face)",
        networks=("topiq_cgfiqa",),
    ),
    _cosines("identity_cos_mini", _COSINE, "Identity (miniature)", networks=("mini_recogniser",)),
    _cosines("identity_cos_irse50", _COSINE, "Identity (IR-SE-50)", networks=("arcface_irse50",)),
    _cosines("identity_cos_clip", _COSINE, "Identity (CLIP)", networks=("clip",)),
    _cosines("identity_cos_adaface", _COSINE, "Identity (AdaFace)", networks=("adaface",)),
    _cosines(
        "identity_lq_adaface",
        "cosine of the embeddings of restored and LQ",
        "Identity to LQ (AdaFace)",
        networks=("adaface",),
        needs_reference=False,
    ),
    _cosines("identity_cos_insightface", _COSINE, "Identity (InsightFace)", networks=("insightface",)),
    _cosines("identity_cos_insightface_r100", _COSINE, "Identity (InsightFace R100)", networks=("insightface_r100",)),
    _cosines("identity_cos_arcface_torch", _COSINE, "Identity (ArcFace-torch)", networks=("arcface_torch",)),
    _cosines("identity_cos_sface", _COSINE, "Identity (SFace)", networks=("sface",)),
    _identity(
        "identity_distance_dlib",
        "Euclidean distance of the embeddings of restored and HQ",
        "Identity dist. (dlib)",
        direction=LOWER,
        implementation="lafr.metrics.face.IdentityDistance",
        networks=("dlib",),
    ),
    _deg("deg", f"{_ARCFACE}, OpenCV's 8-bit gray; all pairs", "Deg"),
    _deg("deg_vqfr", f"{_ARCFACE}, OpenCV's 8-bit gray; pairs under 1 degree left out", "Deg (VQFR)"),
    _deg(
        "ida_rad",
        f"{_ARCFACE}, red and blue exchanged, in [0, 1]",
        "IDA",
        unit="radians",
        digits=4,
        implementation="lafr.metrics.face.IdaRad",
        printed=("ida_rad",),
        plausible=(0, 1.6),
    ),
    _lmd("lmd", "mean distance of the 98 WFLW points of AWing FAN", "LMD", networks=("awing_fan",), printed=("lmd",)),
    _lmd("lmd_68", "mean distance of dlib's 68 points", "LMD (68)", networks=("dlib_68",)),
    MetricRecord(
        "pose_distance",
        "Euclidean distance of the head's Euler angles by Deep3DFaceRecon",
        "Pose",
        unit="degrees",
        digits=2,
        direction=LOWER,
        implementation="lafr.metrics.face.PoseDistance",
        networks=("deep3d",),
        aspect="landmarks",
        plausible=(0, 90),
    ),
    MetricRecord(
        "expression_distance",
        "Euclidean distance of 64 expression coefficients by Deep3DFaceRecon",
        "Expression",
        digits=2,
        direction=LOWER,
        implementation="lafr.metrics.face.ExpressionDistance",
        networks=("deep3d",),
        aspect="landmarks",
        plausible=(0, 30),
    ),
    _pyiqa(
        "qalign",
        "Q-Align's quality, 1 to 5, by a large language model; not offered here, a user's own is taken",
        "Q-Align",
        implementation="",
        plausible=(1, 5),
    ),
    MetricRecord(
        "ntire26_score",
        "CLIP-IQA + MANIQA + MUSIQ/100 + max(0, (10 - NIQE)/10) + Q-Align/5 + max(0, (100 - FID)/100)",
        "Total score",
        direction=HIGHER,
        needs_reference=False,
        implementation="lafr.metrics.ntire.total_score",
    ),
    MetricRecord(
        "ntire26_score_without_qalign",
        "the total score less Q-Align/5: comparable with no score of the challenge",
        "Total score without Q-Align",
        direction=HIGHER,
        needs_reference=False,
        implementation="lafr.metrics.ntire.total_score",
    ),
    MetricRecord(
        "ntire26_faces_below",
        "faces whose AdaFace cosine to the LQ image is below the set's threshold",
        "Faces below gate",
        direction=LOWER,
        digits=0,
        needs_reference=False,
        implementation="lafr.metrics.ntire.faces_below",
    ),
    MetricRecord(
        "precision",
        "share of restored images within the reference's manifold; printed by others, not offered here",
        "Precision",
        direction=HIGHER,
        needs_reference=False,
        printed=("precision",),
        plausible=(0, 1),
    ),
)

for _record in _RECORDS:
    add(_record)
