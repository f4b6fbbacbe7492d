"""What a study found, in words that follow from its numbers by rule; nobody writes them."""

from collections.abc import Mapping, Sequence

from lafr.metrics import DIRECTION
from lafr.studies.costs import curve_of, enough
from lafr.studies.intervals import Spread, compare, pooled_spread

LOWER = ("latent_gap_before", "latent_gap_after", "latent_gap_restored", "latent_l1_restored", "bound_latent_l1")
HIGHER = ("bound_psnr_rgb",)
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


def spreads(values: Values) -> dict[str, Spread]:
    """Return metric -> spread between seeds, pooled over a study's rows."""
    metrics = {metric for of in values.values() for metric in of}
    pooled = {m: pooled_spread([list(of[m].values()) for of in values.values() if m in of]) for m in metrics}
    return {metric: spread for metric, spread in pooled.items() if spread is not None}


def compared(study: Mapping, values: Values, a: str, b: str, borrowed: Mapping[str, Spread]) -> str | None:
    """Return a line on row `a` against row `b`: in which metrics it is ahead, behind, within noise; None if one lacks.

    A difference is ahead or behind when it is larger than half of its 95 % interval.
    """
    parts: dict[str, list[str]] = {}
    for metric in filter(direction, study["metrics"]):
        found = compare(values.get(a, {}).get(metric, {}), values.get(b, {}).get(metric, {}), borrowed.get(metric))
        if found is not None:
            d = digits(metric)
            half = "" if found.half is None else f" ± {found.half:.{d}f}"
            verdict = found.verdict(direction(metric))
            parts.setdefault(verdict, []).append(f"{metric} ({found.difference:+.{d}f}{half})")
    if not parts:
        return None
    words = {"ahead": "ahead", "behind": "behind", "within noise": "within noise", "unsure": "without an interval"}
    count = sum(map(len, parts.values()))
    said = [
        f"{words[verdict]} in {len(parts[verdict])} of {count}: {', '.join(parts[verdict])}"
        for verdict in words
        if verdict in parts
    ]
    return f"**{title(study, a)}** against {title(study, b)}: {'; '.join(said)}."


def title(study: Mapping, row: str) -> str:
    """Return a row's name in words."""
    return study["titles"].get(row, row)


def findings(study: Mapping, records: Sequence[Mapping], benchmark: str, borrowed: Mapping[str, Spread]) -> list[str]:
    """Return what a study found, a line each; `borrowed` are the spreads for rows with one seed."""
    values = values_of(records, benchmark)
    lines = [line for a, b in study["compare"] if (line := compared(study, values, a, b, borrowed))]
    if "counts" in study:
        lines += images_needed(study, values, borrowed)
    if "reference" in study:
        lines += training_costs(study, records)
    return lines


def headline(study: Mapping, records: Sequence[Mapping], benchmark: str, borrowed: Mapping[str, Spread]) -> list[str]:
    """Return what answers a study's question in short: the needed images, the costs, or its first comparison."""
    values = values_of(records, benchmark)
    if "counts" in study:
        return images_needed(study, values, borrowed)
    if "reference" in study:
        return training_costs(study, records)[1:]
    return [line for a, b in study["compare"][:1] if (line := compared(study, values, a, b, borrowed))]


def images_needed(study: Mapping, values: Values, borrowed: Mapping[str, Spread]) -> list[str]:
    """Return, for each metric, after how many images more of them gain nothing beyond the interval."""
    lines = []
    for metric in study["metrics"]:
        rows = [(row, values[row][metric]) for row in study["counts"] if metric in values.get(row, {})]
        if found := enough(rows, direction(metric), borrowed.get(metric)):
            last = found == rows[-1][0]
            lines.append(
                f"{metric}: more images go on gaining, up to the most measured ({found})." if last else
                f"{metric}: after {study['counts'][found]} images the gain is within noise."
            )  # fmt: skip
    return lines


def training_costs(study: Mapping, records: Sequence[Mapping]) -> list[str]:
    """Return time to the reference's last loss, the others' loss at its last time, and what a step costs."""
    by_row = {record["row"]: record for record in records}
    if study["reference"] not in by_row or not curve_of(by_row[study["reference"]]).points:
        return []
    own = by_row[study["reference"]]
    seconds, loss = curve_of(own).points[-1]
    *before, last = own["steps"]
    lines = [
        f"{title(study, study['reference'])} reaches a held-out loss of {loss:.4f} in {seconds:.0f} s, of which "
        f"{sum(s['seconds'] for s in before):.0f} s before restoration; a restoration step takes "
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
        sign = "saves" if saved >= 0 else "costs"
        more = "" if saved >= 0 else " more"
        share = 100 * abs(saved)
        met = "at least" if saved >= study["claim"] else "less than"
        reached = (
            f"reaches {loss:.4f} in {needed:.0f} s: {title(study, study['reference'])} {sign} {share:.0f} %{more}, "
            f"{met} the {100 * study['claim']:.0f} % that the paper claims"
        )
    beside = "" if at is None else f"; at {seconds:.0f} s it stands at {at:.4f}"
    return f"**{title(study, row)}** {reached}{beside}; {costs}."
