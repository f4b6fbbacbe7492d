"""The report of a run on a benchmark: one HTML page that needs nothing but itself."""

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
from lafr.evaluation.report.faces import SMALL, Album
from lafr.evaluation.report.groups import by_group, read_groups
from lafr.evaluation.report.scores import Scores, identity_metric, ranking_metric, read_scores, row_shown, worst_first
from lafr.evaluation.tables import digits, direction, headings, marks, metrics_of, notes, shown, title, with_published
from lafr.storage import atomic_write

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
    "codebook_perplexity_lq": "codes in even use on the input side, exp of the entropy",
    "codebook_perplexity_hq": "the same on the ground truth's side",
    "dead_codes_lq": "codes that no input latent matched",
    "dead_codes_hq": "codes that no ground-truth latent matched",
}
PROVENANCE = ("command", "seed", "date", "commit", "uncommitted_changes", "machine", "python")


def write_report(record: dict, folder: str | Path) -> Path:
    """Write `report.html` into `folder` and return its path: table, distributions, faces, groups, cards, provenance.

    The page loads nothing from anywhere: pictures of at most 28 faces are embedded, so that it stays under 15 MB.

    Args:
        record: what `scripts/eval.py` writes; "pictures" names folders relative to `folder`, "groups" (optional) is a
            CSV or {column: {stem: value}}.
        folder: holds `scores.csv` and the pictures. Pictures that are not there are left out, and the page says so.

    Raises InputError for scores or groups that cannot be read.
    """
    folder = Path(folder)
    scores = read_scores(folder / "scores.csv")
    page = rendered(record, scores, folder)
    path = folder / "report.html"
    atomic_write(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    return path


def rendered(record: dict, scores: Scores, folder: Path) -> str:
    """Return the page."""
    script, style = ((HERE / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    row = row_shown(record)
    return TEMPLATES.get_template("page.html").render(
        record=record,
        measured=lambda value, metric: decimals(record, value, metric),
        row=row,
        title=title(record),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        tables=[grid(record), *published_grids(record)],
        width=WIDTH,
        height=HEIGHT,
        histograms=histograms(record, scores, row),
        curves=curves(record),
        groups=groups_of(record, scores, row),
        latents=[(name, value, LATENTS.get(name, "")) for name, value in record.get("latents", {}).items()],
        cards=record.get("metrics", {}),
        provenance=[(key, record[key]) for key in PROVENANCE if record.get(key) is not None],
        config=json.dumps(record.get("config", {}), indent=1, ensure_ascii=False),
        **faces_of(record, scores, row, folder),
    )


def decimals(record: dict, value: float | None, metric: str) -> str:
    """Return a number with its metric's digits; a dash for none, `failed` for NaN."""
    if value is None:
        return "–"
    return "failed" if math.isnan(value) else f"{value:.{digits(record, metric)}f}"


def grid(record: dict) -> dict:
    """Return a table as the template draws it."""
    marked, columns = marks(record), headings(record)
    rows = [
        (row, [(shown(record, row, metric).partition(" "), marked.get((row, metric), "")) for metric in columns])
        for row in record["rows"]
    ]
    return {"title": title(record), "headings": list(columns.values()), "rows": rows, "notes": notes(record)}


def published_grids(record: dict) -> list[dict]:
    """Return what others printed for this set, a table for each source; nothing for sets that nobody printed."""
    if record["benchmark"] not in published.BENCHMARKS:
        return []
    try:
        return [grid(one) for one in with_published(record)]
    except InputError as refused:
        return [{"title": f"No published values: {refused}", "headings": [], "rows": [], "notes": []}]


def histograms(record: dict, scores: Scores, row: str) -> list:
    """Return the distribution of every metric that has a number an image."""
    own, before = scores.of.get(row, {}), scores.of.get("LQ input", {}) if row != "LQ input" else {}
    drawn = [histogram(m, list(own[m].values()), list(before.get(m, {}).values()), row) for m in own]
    return [(h, direction(record, h.metric)) for h in drawn if h]


def curves(record: dict) -> list:
    """Return each metric over the fidelity knob, where it was swept."""
    sweep = record.get("sweep") or {}
    metrics = dict.fromkeys(metric for scores in sweep.values() for metric in scores)
    drawn = [curve(metric, {f: s[metric] for f, s in sweep.items() if metric in s}) for metric in metrics]
    return [(c, direction(record, c.metric)) for c in drawn if c]


def groups_of(record: dict, scores: Scores, row: str) -> dict[str, dict]:
    """Return column -> group -> scores of the row that is shown, for a set whose people's groups are known."""
    if not record.get("groups"):
        return {}
    own = {metric: scores.of[row][metric] for metric in scores.metrics(row)}
    columns = read_groups(record["groups"], scores.stems)
    return {column: by_group(of, own, record.get("seed", 0)) for column, of in columns.items()}


def faces_of(record: dict, scores: Scores, row: str, folder: Path) -> dict:
    """Return worst and best faces by the ranking metric, and the faces that kept least of their identity."""
    album = Album(record.get("pictures") or {}, folder, row)
    metric, identity = ranking_metric(record, scores, row), identity_metric(scores, row)
    order = worst_first(scores.of[row][metric], direction(record, metric)) if metric else []
    each = min(EACH, (len(order) + 1) // 2)
    worst, best = order[:each], order[::-1][: min(each, len(order) - each)]
    lost = worst_first(scores.of[row][identity], direction(record, identity)) if identity else []
    tell = lambda stem: {m: (scores.of[row][m].get(stem), of_input(scores, m, stem)) for m in metrics_of(record)  # noqa: E731
                         if m in scores.of[row]}  # fmt: skip
    shelf = lambda stems, side: [(album.face(stem, side), tell(stem)) for stem in stems]  # noqa: E731
    sheets = {"worst": shelf(worst, 512), "best": shelf(best, 512), "identities": shelf(lost[:IDENTITIES], SMALL)}
    unseen = [] if identity is None else [s for s, v in scores.of[row][identity].items() if not math.isfinite(v)]
    return {**sheets, "metric": metric, "identity": identity, "unseen": unseen, "full": album.full}


def of_input(scores: Scores, metric: str, stem: str) -> float | None:
    """Return the input's own number."""
    return scores.of.get("LQ input", {}).get(metric, {}).get(stem)
