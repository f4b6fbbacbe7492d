"""Protocols: what a paper calls PSNR, LPIPS, FID and so on, and why its numbers are not another paper's.

The same restored images can be scored under each (`configs/protocol/`); `explain` shows the definitions together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from textwrap import TextWrapper

from lafr.metrics.registry import METRICS, describe


@dataclass(frozen=True)
class Definition:
    """What one protocol means by a quantity.

    Args:
        called: its name in the protocol.
        metric: ours, which measures it; None where LAFR has none.
        differs: how the protocol's own script differs from our metric.
    """

    called: str
    metric: str | None
    differs: str = ""


@dataclass(frozen=True)
class Quantity:
    """One thing that papers measure: each protocol's definition, and why numbers differ."""

    protocols: dict[str, Definition]
    why: str


PROTOCOLS = ("lafr", "vqfr", "osdface", "ntire26")

QUANTITIES = {
    "PSNR": Quantity(
        {
            "lafr": Definition("PSNR", "psnr_rgb"),
            "vqfr": Definition("PSNR", "psnr_rgb", "its script matches mean and deviation to the HQ image first"),
        },
        "Colour: the luma of OSEDiff and AdcSR leaves out errors of hue. Pooling: dB of the mean error over a whole "
        "set (torchmetrics' default) is not the mean of the images' dB; two images gave 22.97 against 30.00. "
        "Matching colours to the HQ image raises it.",
    ),
    "SSIM": Quantity(
        {"lafr": Definition("SSIM", "ssim_rgb")},
        "Colour, as for PSNR. Border: BasicSR and scikit-image leave out the 5 pixels whose window is cut.",
    ),
    "LPIPS": Quantity(
        {
            "lafr": Definition("LPIPS", "lpips_alex"),
            "vqfr": Definition("LPIPS", "lpips_vgg"),
            "osdface": Definition("LPIPS", "lpips_alex", "its trunk isn't stated; pyiqa's default is AlexNet"),
        },
        "Trunk: VGG16's and AlexNet's distances are two scales. Colour: RestoreFormer and DAEFR feed BGR to it. "
        "Range: [0, 1] fed where [-1, 1] is due. ST-LPIPS is another distance.",
    ),
    "DISTS": Quantity(
        {
            "lafr": Definition("DISTS", "dists"),
            "osdface": Definition("DISTS", "dists", "by pyiqa; the weights of the comparison are the same file"),
        },
        "Resizing: the paper's code brings the shorter side to 256 pixels, torchmetrics and pyiqa do not.",
    ),
    "FID to FFHQ": Quantity(
        {
            "lafr": Definition("FID", "fid_ffhq"),
            "vqfr": Definition("FID", "fid_ffhq_50k", "by BasicSR: the same network, another resize to 299 pixels"),
            "osdface": Definition("FID-FFHQ", "fid_ffhq", "which statistics isn't stated"),
            "ntire26": Definition("FID", "fid_ffhq", "which statistics isn't stated"),
        },
        "Statistics: of 50,000 images (BasicSR) or all 70,000 (PMRF). Features: torch-fidelity resizes as TensorFlow "
        "1, BasicSR as PyTorch, pyiqa with clean-fid's antialiasing. Size: FID falls as the set grows.",
    ),
    "FID to the HQ images": Quantity(
        {"osdface": Definition("FID-HQ", "fid_hq")},
        "Reference: the set's own 3,000 sharp images; never comparable with FID to FFHQ, though both are called FID.",
    ),
    "NIQE": Quantity(
        {
            "lafr": Definition("NIQE", "niqe_pyiqa"),
            "vqfr": Definition("NIQE", "niqe"),
            "osdface": Definition("NIQE", "niqe_pyiqa"),
            "ntire26": Definition("NIQE", "niqe_pyiqa"),
        },
        "Colour: BasicSR takes the luma of BT.601 (16 to 235), pyiqa that of YIQ (0 to 255). "
        "Undefined below 192 pixels.",
    ),
    "MUSIQ": Quantity(
        {name: Definition("MUSIQ", "musiq") for name in ("lafr", "osdface", "ntire26")},
        "Training set: KonIQ-10k here; SPAQ, PaQ-2-PiQ and AVA are other scales. Sources disagree by up to 10 on "
        "WIDER-Test for the same method.",
    ),
    "MANIQA": Quantity(
        {
            "lafr": Definition("MANIQA", "maniqa"),
            "osdface": Definition("MANIQA", "maniqa", "on sets without HQ"),
            "ntire26": Definition("MANIQA", "maniqa"),
        },
        "Training set: pyiqa's default changed from PIPAL to KonIQ-10k in 2023, another scale.",
    ),
    "CLIP-IQA": Quantity(
        {
            "lafr": Definition("CLIP-IQA", "clipiqa"),
            "osdface": Definition("CLIP-IQA", "clipiqa", "on sets without HQ"),
            "ntire26": Definition("CLIP-IQA", "clipiqa"),
        },
        "Prompts: pyiqa averages five pairs, the paper has one. CLIP-IQA+ learns its prompts: another metric.",
    ),
    "Q-Align": Quantity({"ntire26": Definition("Q-Align", None)}, "It is the verdict of a large language model."),
    "Deg": Quantity(
        {
            "vqfr": Definition("Deg", "deg_vqfr"),
            "osdface": Definition("Deg", "deg", "whether pairs under 1 degree count isn't stated"),
        },
        "Exclusion: VQFR's script drops pairs under 1 degree from the mean, silently. Unit, colour and range: "
        "RestoreFormer's and DAEFR's IDA is in radians, with red and blue exchanged, in [0, 1].",
    ),
    "LMD": Quantity(
        {name: Definition("LMD", "lmd") for name in ("lafr", "vqfr", "osdface")},
        "Network: 98 points of AWing FAN or others; pixels at 512, not normalised by the eyes' distance.",
    ),
    "Identity": Quantity(
        {
            "lafr": Definition("Identity", "identity_cos_adaface"),
            "ntire26": Definition("AdaFace gate", "identity_lq_adaface", "at most 10 faces below the set's threshold"),
        },
        "Recogniser: cosines of two networks are two scales. NTIRE compares AdaFace's embedding with that of the LQ "
        "image, as its sets have no HQ.",
    ),
}  # fmt: skip


def metrics_of(protocol: str) -> list[str]:
    """Return our metrics that a protocol names, each once."""
    definitions = [quantity.protocols.get(protocol) for quantity in QUANTITIES.values()]
    return list(dict.fromkeys(each.metric for each in definitions if each is not None and each.metric))


def other_metrics(quantity: str) -> list[str]:
    """Return our metrics of a quantity that no protocol names."""
    named = {definition.metric for definition in QUANTITIES[quantity].protocols.values()}
    return [name for name, record in METRICS.items() if record.quantity == quantity and name not in named]


def explain(measured: Mapping | Iterable[Mapping] | None = None, method: str = "LAFR") -> str:
    """Return, for each quantity, the protocols' definitions, what was measured, and why numbers differ.

    Args:
        measured: a record of `lafr eval`, several of them (the same images under several protocols), or a
            mapping of metric -> number. None for the definitions alone; of a record without rows, the reasons.
        method: whose numbers are shown, of a record.
    """
    values, reasons, shown = _measured(measured, method)
    whose = f"Numbers are those of {' and '.join(shown)}. " if shown else ""
    parts = [f"What each protocol measures, and why the numbers differ. {whose}".strip()]
    for name, quantity in QUANTITIES.items():
        lines = [name]
        for protocol, definition in quantity.protocols.items():
            if definition.metric is None:
                lines += _line(protocol, "–", "", f"called {definition.called}; not offered here")
            else:
                said = "; ".join(filter(None, [f"called {definition.called}", describe(definition.metric).definition]))
                there = f". There: {definition.differs}" if definition.differs else ""
                lines += _line(protocol, definition.metric, _number(definition.metric, values, reasons), said + there)
        for other in (others := other_metrics(name)):
            lines += _line("other", other, _number(other, values, reasons), describe(other).definition)
        used = [*(each.metric for each in quantity.protocols.values()), *others]
        for metric in dict.fromkeys(used):
            if metric and metric in reasons and metric not in values:
                lines += _wrapped(f"{metric} was not measured: {reasons[metric]}", "  ", "    ")
        lines += _wrapped(f"Why: {quantity.why}", "  ", "    ")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _measured(
    measured: Mapping | Iterable[Mapping] | None, method: str
) -> tuple[dict[str, float | None], dict[str, str], list[str]]:
    records = [] if measured is None else [measured] if isinstance(measured, Mapping) else list(measured)
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    shown: list[str] = []
    for record in records:
        scores = {} if "not_measured" in record else record
        if record.get("rows"):
            name = method if method in record["rows"] else next(reversed(record["rows"]))
            scores = record["rows"][name]
            where = f"{name!r} on {record.get('benchmark', 'a set')}"
            shown += [where] if where not in shown else []
        for metric, score in scores.items():
            values[metric] = score.get("mean") if isinstance(score, Mapping) else score
        reasons |= record.get("not_measured", {})
    return values, reasons, shown


def _number(metric: str, values: Mapping[str, float | None], reasons: Mapping[str, str]) -> str:
    if metric not in values:
        return "not measured" if metric in reasons else ""
    value = values[metric]
    return f"{value:.{describe(metric).digits}f}" if value is not None and isfinite(value) else "failed"


def _line(protocol: str, metric: str, number: str, said: str) -> list[str]:
    return _wrapped(said, f"  {protocol:8} {metric:24} {number:>12}  ", " " * 49)


def _wrapped(text: str, first: str, other: str) -> list[str]:
    return TextWrapper(width=120, initial_indent=first, subsequent_indent=other, break_on_hyphens=False).wrap(text)
