"""Draw and describe the studies: `python scripts/study_page.py`. Plots and `results/README.md`, from the JSON files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

LIMIT = 6  # minutes that a run should take, shared stages and scoring included


def write_page(results: Path, page: Path | None = None) -> Path:
    """Draw every study's plot and write the page beside the results' folder; return the page."""
    from study_steps import load_study, study_names

    from lafr.files import write_aside
    from lafr.studies.findings import noises, noises_for, values_of
    from lafr.studies.record import PROBLEMS, REFERENCES, read_records

    order = ["alignment", "images", "cost", "codebook", "one_step"]
    studies = [load_study(name) for name in sorted(study_names(), key=lambda n: (n not in order, n))]
    studies.sort(key=lambda s: order.index(s["name"]) if s["name"] in order else len(order))
    records = {study["name"]: read_records(results, study["name"]) for study in studies}
    problems = json.loads(p.read_text()) if (p := results / PROBLEMS).is_file() else {}
    known = json.loads(p.read_text()) if (p := results / REFERENCES).is_file() else {}
    references = {benchmark: of["rows"] for benchmark, of in known.items()}
    benchmarks = ["val", *sorted({b for of in records.values() for r in of for b in r["scores"]} - {"val"})]
    borrowed = {b: noises(values_of(records["alignment"], b)) for b in benchmarks}
    noise = {name: {b: noises_for(values_of(of, b), borrowed[b]) for b in benchmarks} for name, of in records.items()}
    page = page or results.parent / "README.md"
    parts = [HEAD, in_short(studies, records, benchmarks, noise)]
    for study in studies:
        own = records[study["name"]]
        parts.append(section(study, own, benchmarks, noise[study["name"]], references, problems, results, page.parent))
    parts.append(seen_section(results, page.parent))
    write_aside(page, lambda aside: aside.write_text("\n\n".join(parts) + "\n"))
    return page


HEAD = """# Studies in miniature

What the parts of the method do, at 128 px, trained for minutes on two CPU cores. This page is written by
`python scripts/study_page.py` from the JSON files in [studies/](studies); nobody edits its findings.

How to read it. **Ahead** and **behind** mean a difference larger than half of its 95 % interval (Student's t); **within
noise**, in tables no word, a smaller one. Differences are between runs of the same seed. Their noise is what rows and
seeds leave unexplained in a study of several seeds, pooled over its rows, as if all were equally noisy; the studies
with one seed are read with study 1's. Of all comparisons without a true difference about one in twenty is called ahead
or behind by chance. So pictures are called **better** only when ahead in at least two of their metrics and behind in
none, **worse** the other way round, **mixed** when ahead and behind. Choices are made on `val`, among them batch sizes
and learning rates, by sixteen short trials with one seed; `london` is scored once. Identity (SFace, dlib) is scored by
networks that neither trained a model nor taught one that did. What minutes at 128 px show need not hold at 512 px.
`bound_` is the validation of the codebook stage: HQ latents through the codebook. `latent_l1_restored` is the mean
distance of the restored latent to the untouched encoder's z_hq, on the 16 faces that training validates on."""


def in_short(studies, records, benchmarks, noise) -> str:
    """Return each study's answer, on the test set where all its runs were scored there."""
    from lafr.studies.findings import headline, training_costs

    lines = ["## In short"]
    for study in studies:
        own = records[study["name"]]
        scored = [b for b in benchmarks if own and all(b in r["scores"] for r in own)]
        found = headline(study, own, scored[-1], noise[study["name"]][scored[-1]]) if scored else []
        where = f"On {scored[-1]}:" if scored else ""
        parts = [f"**{study['question']}**", listed(training_costs(study, own)), where]
        parts.append(listed(found) or "- not known yet")
        lines += filter(None, parts)
    return "\n\n".join(lines)


def section(study, records, benchmarks, noise, references, problems, results: Path, base: Path) -> str:
    """Return a study's part of the page: question, findings, plots, tables, what is missing."""
    from lafr.studies.findings import images_needed, training_costs, values_of

    parts = [f"## {study['question']}", study["note"]]
    if not records:
        parts.append(f"This study was not run yet: `python scripts/study.py study={study['name']}`.")
    if drawn := draw_costs(study, records, results):
        parts += [listed(training_costs(study, records)), picture(study["question"], drawn, base)]
    for benchmark in [b for b in benchmarks if any(b in r["scores"] for r in records)]:
        values, head = values_of(records, benchmark), f"{study['question']} On {benchmark}"
        parts += [f"### On {benchmark}", extent(records, benchmark)]
        if "counts" in study:
            parts.append(listed(images_needed(study, values, noise[benchmark])))
        if drawn := draw(study, values, noise[benchmark], head, results / f"{study['name']}_{benchmark}.svg"):
            parts.append(picture(head, drawn, base))
        parts.append(table(study, records, benchmark, values, noise[benchmark], references.get(benchmark, {})))
        parts.append(differences_table(study, values, noise[benchmark]))
    if records:
        parts.append(execution(records))
    if missing := missing_runs(study, records, problems):
        parts.append("Missing:\n\n" + listed(missing))
    return "\n\n".join(filter(None, parts))


def listed(lines: Sequence[str]) -> str:
    """Return a list in Markdown."""
    return "\n".join(f"- {line}" for line in lines)


def picture(title: str, path: Path, base: Path) -> str:
    """Return a picture in Markdown, by its path from the page."""
    return f"![{title}]({path.relative_to(base).as_posix()})"


def measured(study: Mapping, rows: Iterable[Mapping]) -> list[str]:
    """Return the study's metrics, in its order, that one of `rows` (metric -> what was found) has."""
    found = {metric for of in rows for metric in of}
    return [metric for metric in study["metrics"] if metric in found]


def extent(records: Sequence[Mapping], benchmark: str) -> str:
    """Return how many of the runs were scored so far, and how many of their models had to be trained again for it."""
    own = [r for r in records if benchmark in r["scores"]]
    again = [r["trained_again"][benchmark] for r in own if benchmark in r.get("trained_again", {})]
    told = [] if len(own) == len(records) else [f"{len(own)} of {len(records)} runs were scored so far."]
    if again:
        pairs = [(of["restoration"]["noted"]["psnr_rgb"], of["restoration"]["again"]["psnr_rgb"])
                 for of in again if "restoration" in of]  # fmt: skip
        most = max((abs(a - b) for a, b in pairs), default=0.0)
        told.append(
            "Lost with a machine and trained again on another, with the same settings and seeds and up to as many "
            f"threads: {len(again)} of the models; the PSNR that training validates changed by up to {most:.2f} dB."
        )
    return " ".join(told)


def draw_costs(study: Mapping, records: Sequence[Mapping], results: Path) -> Path | None:
    """Draw the loss over the time of training, for a study that asks for it."""
    from lafr.studies import charts
    from lafr.studies.costs import curve_of
    from lafr.studies.findings import title

    if "reference" not in study:
        return None
    curves = {title(study, r["row"]): curve_of(r).points for r in in_order(study, records)}
    curves = {name: points for name, points in curves.items() if points}
    return charts.curves(curves, study["question"], results / f"{study['name']}.svg") if curves else None


def draw(study: Mapping, values: Mapping, noise: Mapping, head: str, path: Path) -> Path | None:
    """Draw a study's scores as PNG and SVG; return the SVG, or None where there is nothing to draw."""
    from lafr.studies import charts
    from lafr.studies.findings import title

    metrics = measured(study, values.values())
    if not metrics:
        return None
    if "counts" in study:
        counts = {row: n for row, n in study["counts"].items() if row in values}
        return charts.over_counts(counts, values, metrics, noise, head, path)
    rows = {row: title(study, row) for row in study["rows"] if row in values}
    return charts.dots(rows, values, metrics, noise, head, path)


def in_order(study: Mapping, records: Sequence[Mapping]) -> list[Mapping]:
    """Return the records in the order of the study's rows; those of rows that it lost come last."""
    rows = list(study["rows"])
    return sorted(records, key=lambda r: (rows.index(r["row"]) if r["row"] in rows else len(rows), r["seed"]))


def table(
    study: Mapping, records: Sequence[Mapping], benchmark: str, values: Mapping, noise: Mapping, references: Mapping
) -> str:
    """Return mean and half of the 95 % interval of every row.

    `references`, row -> metric -> scores, are what no run changes: the input and the codec's ceiling.
    """
    from lafr.studies.findings import direction, means, title
    from lafr.tables import LEGEND, TRAINED_ON

    metrics = measured(study, values.values())
    heads = [f"{metric} {direction(metric)}".strip() for metric in metrics]
    lines = ["| row | " + " | ".join([*heads, "trained values", "s per step (fastest seed)"]) + " | seeds |",
             "|---|" + "---|" * (len(heads) + 3)]  # fmt: skip
    marked = {(r["row"], metric) for r in records for metric in r["trained_on"]}
    for row in dict.fromkeys(r["row"] for r in in_order(study, records)):
        own = [r for r in records if r["row"] == row and benchmark in r["scores"]]
        if own:
            cells = [
                cell(values[row].get(metric, {}), metric, noise) + TRAINED_ON * ((row, metric) in marked)
                for metric in metrics
            ]
            per_step = min(r["steps"][-1]["seconds_per_step"] for r in records if r["row"] == row)
            cells += [f"{own[0]['trained_values']:,}", f"{per_step:.2f}", str(len(own))]
            lines.append(f"| {title(study, row)} | " + " | ".join(cells) + " |")
    for name, scores in references.items():
        found = means(scores)
        cells = [cell({0: found[metric]} if metric in found else {}, metric, {}) for metric in metrics]
        lines.append(f"| *{name}* | " + " | ".join(cells) + " | – | – | – |")
    images = next(r["scores"][benchmark]["images"] for r in records if benchmark in r["scores"])
    head = (
        f"{benchmark}, {images} images; mean ± half of its 95 % interval by the spread between seeds, pooled over rows "
        "(of a study with one seed: study 1's)."
    )
    return "\n".join([head, "", *lines, *(["", LEGEND] if marked else [])])


def differences_table(study: Mapping, values: Mapping, noise: Mapping) -> str:
    """Return how rows stand against each other, metric by metric; nothing where none can be compared."""
    from lafr.studies.findings import WORDS, comparisons, direction, judged_pictures, pictures_verdict, title

    found = comparisons(study, values, noise)
    if not found:
        return ""
    metrics = measured(study, [differences for _, _, differences in found])
    heads = [f"{WORDS.get(metric, metric)} {direction(metric)}" for metric in metrics]
    lines = ["| difference | " + " | ".join([*heads, "pictures"]) + " |", "|---|" + "---|" * (len(heads) + 1)]
    for a, b, differences in found:
        cells = [difference_cell(differences.get(metric), metric) for metric in metrics]
        cells.append(pictures_verdict(judged_pictures(differences)) or "–")
        lines.append(f"| {title(study, a)} less {title(study, b)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference_cell(one, metric: str) -> str:
    """Return a difference, half of its interval, and whether it is ahead or behind."""
    from lafr.studies.findings import SURE, direction

    if one is None:
        return "–"
    verdict = one.verdict(direction(metric))
    return with_half(one.difference, one.half, metric, sign="+") + (f" **{verdict}**" if verdict in SURE else "")


def cell(seeds: Mapping[int, float], metric: str, noise: Mapping) -> str:
    """Return a mean and half of its interval."""
    from lafr.studies.intervals import half_of

    if not seeds:
        return "–"
    values = list(seeds.values())
    return with_half(sum(values) / len(values), half_of(values, noise.get(metric)), metric)


def with_half(value: float, half: float | None, metric: str, sign: str = "") -> str:
    """Return a value, and half of its interval where that is known, with the metric's decimals."""
    from lafr.studies.findings import digits

    d = digits(metric)
    return f"{value:{sign}.{d}f}" + ("" if half is None else f" ± {half:.{d}f}")


def execution(records: Sequence[Mapping]) -> str:
    """Return wall-clock, device and steps of every run."""
    lines = ["<details><summary>Wall-clock, device and steps of each run</summary>", "",
             "| run | minutes | of which scoring | device | threads | steps × batch |", "|---|---|---|---|---|---|",
             ]  # fmt: skip
    over = 0
    for r in records:
        scoring = r["wall_seconds"]["val"]
        steps = ", ".join(f"{s['stage']} {s['steps']} × {s['batch_size']}" for s in r["steps"])
        whole = r["wall_seconds"]["training"] + scoring
        over += whole > 60 * LIMIT
        lines.append(f"| {r['row']}, seed {r['seed']} | {whole / 60:.1f} | {scoring / 60:.1f} | {r['device']} | "
                     f"{r['threads']} | {steps} |")  # fmt: skip
    kinds = sorted({f"{r['machine']}, torch {r['versions']['torch']}, {r['date']}" for r in records})
    note = f"Minutes count shared stages in every run that has them; {over} of {len(records)} took more than {LIMIT}."
    return "\n".join([*lines, "", f"{note} {'; '.join(kinds)}.", "", "</details>"])


def missing_runs(study: Mapping, records: Sequence[Mapping], problems: Mapping[str, str]) -> list[str]:
    """Return the runs that a study asks for and that left no record, with the reason where one is known."""
    there = {(r["row"], r["seed"]) for r in records}
    wanted = [(str(row), seed) for row in study["rows"] for seed in study["seeds"]]
    names = [f"{study['name']}/{row}, seed {seed}" for row, seed in wanted if (row, seed) not in there]
    return [f"{name}: {problems.get(name, 'not run yet')}" for name in names]


def seen_section(results: Path, base: Path) -> str:
    """Return the part on what the latents look like."""
    from lafr.studies import charts

    path = results / "seen.json"
    head = "## What is seen?"
    if not path.is_file():
        return f"{head}\n\nThis study was not run yet: `python scripts/study_seen.py`, after study 1."
    record = json.loads(path.read_text())
    drawn = charts.latent_map(record, results / "seen.svg")
    lines = [f"{name}: mean distance to z_hq of the same face {d:.3f}" for name, d in record["distances"].items()]
    share = " and ".join(f"{100 * v:.1f} %" for v in record["explained"])
    return "\n\n".join([
        head,
        f"Principal components of z_hq of {record['images']} faces of {record['benchmark']} (seed {record['seed']}); "
        f"the two hold {share} of its variance. Each point is a face's whole latent.",
        picture("Latents of the same faces", drawn, base),
        listed(lines),
        "The sheets of faces, chosen by metric, are made by the same command into `runs/studies/seen/`.",
    ])  # fmt: skip


if __name__ == "__main__":
    print(write_page(Path(__file__).resolve().parent.parent / "results" / "studies"))
