"""What a study found, in words that follow from its numbers by rule; nobody writes them."""

from collections.abc import Iterable, Mapping, Sequence

from lafr.metrics import DIRECTION
from lafr.studies.costs import curve_of, enough
from lafr.studies.intervals import Comparison, Noise, compare, noise_of

LOWER = ("latent_gap_before", "latent_gap_after", "latent_gap_restored", "latent_l1_restored", "bound_latent_l1")
HIGHER = ("bound_psnr_rgb",)
WORDS = {
    "latent_gap_after": "latent gap", "latent_l1_restored": "restored latent", "bound_latent_l1": "bound of the latent",
    "bound_psnr_rgb": "bound of PSNR", "psnr_rgb": "PSNR", "st_lpips_vgg": "ST-LPIPS",
    "identity_cos_sface": "identity by SFace", "identity_distance_dlib": "identity by dlib", "lmd_68": "landmarks",
}  # fmt: skip
GAP = "latent_gap_after"
OF_LATENTS = (*LOWER, *HIGHER, "codebook_perplexity_hq", "dead_codes_hq")  # all others are of pictures
SURE = ("ahead", "behind")
PICTURE_WORDS = ("better", "mixed", "no clear difference", "worse")
GAP_WORDS = {"ahead": "smaller", "within noise": "the same within noise", "behind": "larger", "unsure": "unsure"}
DIGITS = {"psnr_rgb": 2, "bound_psnr_rgb": 2, "codebook_perplexity_hq": 0, "dead_codes_hq": 0, "lmd_68": 2}

Values = Mapping[str, Mapping[str, Mapping[int, float]]]  # row -> metric -> seed -> value


def direction(metric: str) -> str:
    """Return ↑ or ↓, which is better; nothing for what only describes, such as the use of codes."""
    return "↓" if metric in LOWER else "↑" if metric in HIGHER else DIRECTION.get(metric, "")


def digits(metric: str) -> int:
    """Return how many decimals of a metric are shown."""
    return DIGITS.get(metric, 4)


def run_values(record: Mapping, benchmark: str) -> dict[str, float]:
    """Return metric -> value of a run: its scores and latents on a benchmark, and what its stages validated."""
    scores = means(record["scores"].get(benchmark, {}))
    stages = {step["stage"]: step["validation"] for step in record["steps"]}
    bound = {f"bound_{k}": v for k, v in stages.get("codebook", {}).items() if k in ("latent_l1", "psnr_rgb")}
    restored = stages.get("restoration", {}).get("latent_l1")
    gap = {} if restored is None else {"latent_l1_restored": restored}
    return scores | dict(record["latents"].get(benchmark, {})) | bound | gap


def means(scores: Mapping) -> dict[str, float]:
    """Return metric -> mean of a row's scores; a failed metric has none."""
    return {
        metric: found["mean"]
        for metric, found in scores.items()
        if isinstance(found, Mapping) and found["mean"] is not None
    }


def values_of(records: Sequence[Mapping], benchmark: str) -> Values:
    """Return row -> metric -> seed -> value of the runs that were scored on a benchmark."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        if benchmark in record["scores"]:
            for metric, value in run_values(record, benchmark).items():
                found.setdefault(record["row"], {}).setdefault(metric, {})[record["seed"]] = value
    return found


def noises(values: Values) -> dict[str, Noise]:
    """Return metric -> noise, pooled over a study's rows, of those with a row of several seeds."""
    metrics = {metric for of in values.values() for metric in of}
    found = {m: noise_of([of[m] for of in values.values() if m in of]) for m in metrics}
    return {metric: noise for metric, noise in found.items() if noise is not None}


def noises_for(values: Values, borrowed: Mapping[str, Noise]) -> dict[str, Noise]:
    """Return the noise that a study is read with: its own in metrics of which each row has several seeds."""
    own = {m: n for m, n in noises(values).items() if all(len(of[m]) > 1 for of in values.values() if m in of)}
    return {**borrowed, **own}


def compared(
    metrics: Iterable[str], values: Values, a: str, b: str, noise: Mapping[str, Noise]
) -> dict[str, Comparison]:
    """Return metric -> row `a` less row `b`, for those of `metrics` that are better one way and that both rows have."""
    found = {
        metric: compare(values.get(a, {}).get(metric, {}), values.get(b, {}).get(metric, {}), noise.get(metric))
        for metric in filter(direction, metrics)
    }
    return {metric: one for metric, one in found.items() if one is not None}


def comparisons(study: Mapping, values: Values, noise: Mapping[str, Noise]) -> list[tuple[str, str, dict]]:
    """Return (row, the row it stands against, metric -> difference) for what a study compares and both have."""
    pairs = [(a, b, compared(study["metrics"], values, a, b, noise)) for a, b in study["compare"]]
    return [(a, b, differences) for a, b, differences in pairs if differences]


def judged_pictures(differences: Mapping[str, Comparison]) -> dict[str, list[str]]:
    """Return verdict -> the pictures' metrics, in words, that are ahead, behind, within noise or unsure."""
    found: dict[str, list[str]] = {}
    for metric, one in differences.items():
        if metric not in OF_LATENTS:
            found.setdefault(one.verdict(direction(metric)), []).append(WORDS.get(metric, metric))
    return found


def pictures_verdict(parts: Mapping[str, Sequence[str]]) -> str | None:
    """Return what the verdicts of the pictures' metrics come to; None where there is none, or one without interval."""
    ahead, behind = len(parts.get("ahead", ())), len(parts.get("behind", ()))
    if not parts or "unsure" in parts:
        return None
    if ahead and behind:
        return "mixed"
    return "better" if ahead > 1 else "worse" if behind > 1 else "no clear difference"


def short_answers(study: Mapping, values: Values, noise: Mapping[str, Noise]) -> list[str]:
    """Return, for each row that others stand against, which give better pictures, and which a smaller latent gap."""
    lines = []
    found = comparisons(study, values, noise)
    for b in dict.fromkeys(b for _, b, _ in found):
        pictures: dict[str, list[str]] = {}
        gaps: dict[str, list[str]] = {}
        for a, differences in [(a, of) for a, other, of in found if other == b]:
            parts = judged_pictures(differences)
            if verdict := pictures_verdict(parts):
                pictures.setdefault(verdict, []).append(title(study, a) + reasons(parts, verdict))
            if gap := differences.get(GAP):
                gaps.setdefault(GAP_WORDS[gap.verdict(direction(GAP))], []).append(title(study, a))
        lines += grouped(f"Pictures against those of {title(study, b)}", pictures, PICTURE_WORDS)
        lines += grouped(f"Latent gap against that of {title(study, b)}", gaps, GAP_WORDS.values())
    return lines


def reasons(parts: Mapping[str, Sequence[str]], verdict: str) -> str:
    """Return in what a row's pictures are ahead and behind, in brackets, where the verdict alone does not say it."""
    if verdict in ("better", "worse"):
        return ""
    sure = [f"{word} in {', '.join(parts[word])}" for word in SURE if word in parts]
    return f" ({'; '.join(sure)})" if sure else ""


def grouped(head: str, groups: Mapping[str, Sequence[str]], order: Iterable[str]) -> list[str]:
    """Return a line with a line below it for each group, in order, or none."""
    said = [f"\n  - **{word}**: {'; '.join(groups[word])}" for word in order if word in groups]
    return [f"{head}:{''.join(said)}"] if said else []


def title(study: Mapping, row: str) -> str:
    """Return a row's name in words."""
    return study["titles"].get(row, row)


def headline(study: Mapping, records: Sequence[Mapping], benchmark: str, noise: Mapping[str, Noise]) -> list[str]:
    """Return what answers a study's question in short: the needed images, or which pictures are better."""
    values = values_of(records, benchmark)
    return images_needed(study, values, noise) if "counts" in study else short_answers(study, values, noise)


def images_needed(study: Mapping, values: Values, noise: Mapping[str, Noise]) -> list[str]:
    """Return after how many images more of them gain nothing beyond the interval, and in which metrics."""
    said: dict[str, list[str]] = {}
    for metric in study["metrics"]:
        rows = [(row, values[row][metric]) for row in study["counts"] if metric in values.get(row, {})]
        if found := enough(rows, direction(metric), noise.get(metric)):
            last = found == rows[-1][0]
            count = f"{study['counts'][found]:,}"
            words = f"more images go on gaining, up to the most measured ({count})" if last else (
                f"after {count} images the gain is within noise")  # fmt: skip
            said.setdefault(words, []).append(WORDS.get(metric, metric))
    return [f"{', '.join(metrics)}: {words}." for words, metrics in said.items()]


def training_costs(study: Mapping, records: Sequence[Mapping]) -> list[str]:
    """Return time to the reference's last loss, the others' loss at its last time, and what a step costs.

    The loss is of validation faces in every case; a study without a reference has no such lines.
    """
    if "reference" not in study:
        return []
    by_row = {record["row"]: record for record in records}
    if study["reference"] not in by_row or not curve_of(by_row[study["reference"]]).points:
        return []
    own = by_row[study["reference"]]
    seconds, loss = curve_of(own).points[-1]
    *before, last = own["steps"]
    lines = [
        f"{title(study, study['reference'])} reaches a loss of {loss:.4f} on validation faces in {seconds:.0f} s, "
        f"of which {sum(s['seconds'] for s in before):.0f} s before restoration; a restoration step takes "
        f"{last['seconds_per_step']:.2f} s."
    ]
    for row, record in by_row.items():
        if row != study["reference"] and (curve := curve_of(record)).points:
            lines.append(cost_line(study, row, record, curve.time_to(loss), curve.at(seconds), seconds, loss))
    return lines


def cost_line(
    study: Mapping, row: str, record: Mapping, needed: float | None, at: float | None, seconds: float, loss: float
) -> str:
    """Return how a costly way stands beside the reference's time and loss."""
    step = record["steps"][-1]
    costs = f"a step takes {step['seconds_per_step']:.2f} s and trains {step['trained_parameters']:,} values"
    if needed is None:
        reached = f"does not reach {loss:.4f} in its {curve_of(record).points[-1][0]:.0f} s"
    else:
        saved = 1 - seconds / needed if needed else 0.0
        claim = f"{100 * study['claim']:.0f} %"
        if saved < 0:
            against = f"takes {seconds / needed:.1f} times as long, where the paper claims {claim} less"
        else:
            met = "at least" if saved >= study["claim"] else "less than"
            against = f"saves {100 * saved:.0f} %, {met} the {claim} that the paper claims"
        reached = f"reaches {loss:.4f} in {needed:.0f} s: {title(study, study['reference'])} {against}"
    beside = "" if at is None else f"; at {seconds:.0f} s it stands at {at:.4f}"
    return f"**{title(study, row)}** {reached}{beside}; {costs}."
