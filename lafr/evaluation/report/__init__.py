"""The report of a run on a benchmark: one HTML page that loads nothing from elsewhere."""

import base64
import hashlib
import json
import math
from pathlib import Path

import jinja2
from markupsafe import Markup

from lafr.errors import InputError
from lafr.evaluation import published
from lafr.evaluation.report.charts import HEIGHT, WIDTH, curve, histogram
from lafr.evaluation.report.faces import SMALL, Album, Face
from lafr.evaluation.report.groups import by_group, read_groups
from lafr.evaluation.report.scores import (
    ImageScores,
    identity_metric,
    method_shown,
    read_image_scores,
    worst_best_metric,
    worst_first,
)
from lafr.evaluation.tables import digits, direction, headings, marks, metrics_of, notes, shown, title, with_published
from lafr.storage import write_text

HERE = Path(__file__).resolve().parent
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
EACH = 8  # worst faces, and best
IDENTITIES = 12

LATENTS = {
    "latent_gap_before": "mean |z_lq − z_hq|: input latents against ground truth",
    "latent_gap_after": "mean |z_aligned − z_hq|: after the adapter",
    "latent_gap_restored": "mean |z_restored − z_hq|: after the UNet",
    "codebook_perplexity_lq": "exp of the entropy of the codes matched by input latents",
    "codebook_perplexity_hq": "the same of ground-truth latents",
    "dead_codes_lq": "codes that no input latent matched",
    "dead_codes_hq": "codes that no ground-truth latent matched",
}
PROVENANCE = ("command", "seed", "date", "commit", "uncommitted_changes", "machine", "python")


def write_report(record: dict, folder: str | Path) -> Path:
    """Write `report.html` into `folder` and return its path: table, distributions, faces, groups, cards, provenance.

    The page loads nothing from anywhere: at most 28 faces are embedded, so that it stays under 15 MB.

    Args:
        record: what `lafr eval` writes; "pictures" names folders relative to `folder`, "groups" (optional) is a
            CSV or {column: {stem: value}}.
        folder: holds `scores.csv` and the images. Images that are missing are left out, and the page says so.

    Raises InputError for scores or groups that cannot be read.
    """
    folder = Path(folder)
    scores = read_image_scores(folder / "scores.csv")
    path = folder / "report.html"
    write_text(path, rendered(record, scores, folder))
    return path


def rendered(record: dict, scores: ImageScores, folder: Path) -> str:
    """Return the page."""
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    method = method_shown(record)
    return TEMPLATES.get_template("page.html").render(
        record=record,
        measured=lambda value, metric: decimals(record, value, metric),
        method=method,
        title=title(record),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        style=Markup(style),
        tables=[grid(record), *published_grids(record)],
        width=WIDTH,
        height=HEIGHT,
        histograms=histograms(record, scores, method),
        curves=curves(record),
        groups=groups_of(record, scores, method),
        latents=[(name, value, LATENTS.get(name, "")) for name, value in record.get("latents", {}).items()],
        cards=record.get("metrics", {}),
        provenance=[(key, record[key]) for key in PROVENANCE if record.get(key) is not None],
        config=json.dumps(record.get("config", {}), indent=1, ensure_ascii=False),
        **faces_of(record, scores, method, folder),
    )


def decimals(record: dict, value: float | None, metric: str) -> str:
    """Return a number with its metric's digits; a dash for none, `failed` for NaN."""
    if value is None:
        return "–"
    return "failed" if math.isnan(value) else f"{value:.{digits(record, metric)}f}"


def grid(record: dict) -> dict:
    """Return a table as the template draws it."""
    marked, columns = marks(record, better_than_input=True), headings(record)
    rows = []
    for method in record["rows"]:
        cells = [(shown(record, method, m).partition(" "), marked.get((method, m), "")) for m in columns]
        rows.append((method, cells))
    return {"title": title(record), "headings": list(columns.values()), "rows": rows, "notes": notes(record)}


def published_grids(record: dict) -> list[dict]:
    """Return what others printed for this set, a table for each source; none for a set without published values."""
    if record["benchmark"] not in published.BENCHMARKS:
        return []
    try:
        return [grid(one) for one in with_published(record)]
    except InputError as refused:
        return [{"title": f"No published values: {refused}", "headings": [], "rows": [], "notes": []}]


def histograms(record: dict, scores: ImageScores, method: str) -> list:
    """Return the distribution of every metric of single images."""
    own, before = scores.of.get(method, {}), scores.of.get("LQ input", {}) if method != "LQ input" else {}
    drawn = [histogram(m, list(own[m].values()), list(before.get(m, {}).values()), method) for m in own]
    return [(h, direction(record, h.metric)) for h in drawn if h]


def curves(record: dict) -> list:
    """Return each metric over the fidelity parameter, where it was swept."""
    sweep = record.get("sweep") or {}
    metrics = dict.fromkeys(metric for scores in sweep.values() for metric in scores)
    found = []
    for metric in metrics:
        measured = {fidelity: scores[metric] for fidelity, scores in sweep.items() if metric in scores}
        if drawn := curve(metric, measured):
            found.append((drawn, direction(record, metric)))
    return found


def groups_of(record: dict, scores: ImageScores, method: str) -> dict[str, dict]:
    """Return column -> group -> scores of the method that is shown, for a set whose people's groups are known."""
    if not record.get("groups"):
        return {}
    own = {metric: scores.of[method][metric] for metric in scores.metrics(method)}
    columns = read_groups(record["groups"], scores.stems)
    return {column: by_group(of, own, record.get("seed", 0)) for column, of in columns.items()}


def faces_of(record: dict, scores: ImageScores, method: str, folder: Path) -> dict:
    """Return the worst and best faces by the ranking metric, and those that lost most of their identity."""
    album = Album(record.get("pictures") or {}, folder, method)
    own = scores.of.get(method, {})
    before = scores.of.get("LQ input", {})

    def with_scores(stems: list[str], side: int) -> list[tuple[Face, dict]]:
        found = []
        for stem in stems:
            metrics = [metric for metric in metrics_of(record) if metric in own]
            of_stem = {metric: (own[metric].get(stem), before.get(metric, {}).get(stem)) for metric in metrics}
            found.append((album.face(stem, side), of_stem))
        return found

    metric, identity = worst_best_metric(record, scores, method), identity_metric(scores, method)
    order = worst_first(own[metric], direction(record, metric)) if metric else []
    each = min(EACH, (len(order) + 1) // 2)
    worst, best = order[:each], order[::-1][: min(each, len(order) - each)]
    lost = worst_first(own[identity], direction(record, identity)) if identity else []
    not_found = [stem for stem, value in own[identity].items() if not math.isfinite(value)] if identity else []
    return {
        "worst": with_scores(worst, 512),
        "best": with_scores(best, 512),
        "identities": with_scores(lost[:IDENTITIES], SMALL),
        "metric": metric,
        "identity": identity,
        "not_found": not_found,
        "full": album.full,
    }
