"""The paper's claims on the miniature: question, answer, plot, table and what it does not say, from finished runs."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.commands.evaluate import plan_from_config
from lafr.commands.launch import command_line, composed
from lafr.errors import InputError, need
from lafr.evaluation import intervals, markdown
from lafr.evaluation.figures import save_svg
from lafr.evaluation.plan import LQ
from lafr.evaluation.run import evaluate
from lafr.evaluation.summary import mean_and_interval
from lafr.metrics.registry import describe
from lafr.miniature.build import summaries
from lafr.models.loading import read_header
from lafr.models.saved import INDEX
from lafr.provenance import provenance
from lafr.storage import JsonLines, read_json
from lafr.training.checkpoints import TRAINED

Scores = Mapping[str, np.ndarray]  # metric -> a number an image


def findings(cfg: DictConfig) -> dict:
    """Score the finished runs of each chosen claim; the others keep what is recorded, or are "not run"."""
    for chosen, known in ((cfg.claims, cfg.known), (cfg.measured, composed("eval", f"benchmark={cfg.set}").metrics)):
        if unknown := [name for name in chosen if name not in known]:
            raise InputError(f"findings have no {', '.join(unknown)}; choose among {', '.join(known)}")
    target = Path(cfg.output) / "findings.json"
    record = read_json(target)["claims"] if target.is_file() else {}
    claims = {}
    for name, claim in OmegaConf.to_container(cfg.known, resolve=True).items():
        asked = {key: claim[key] for key in ("question", "command", "says_not", "plot")}
        runs = finished_runs(Path(cfg.runs), claim["runs"])
        if name in cfg.claims and len(runs) > 1:
            claims[name] = asked | answered(name, claim, runs, cfg)
            draw(claims[name], Path(cfg.output) / "findings" / f"{name}.svg")
        else:
            claims[name] = {"methods": {}} | record.get(name, {}) | asked
        claims[name]["not_run"] = [method for method in claim["runs"] if method not in claims[name]["methods"]]
    return {"claims": claims}


def finished_runs(folder: Path, runs: Mapping[str, str]) -> dict[str, dict[int, Path]]:
    """Return method -> seed -> run folder, of the runs that have saved their model."""
    found = {}
    for method, name in runs.items():
        place = folder / name
        # a sweep over seeds appends them to a folder's name; without one the seed is the configuration's, 0
        swept = place.parent.glob(f"{glob.escape(place.name)},seed=*")
        own = {
            int(seed): path for path in swept if (seed := path.name.rpartition("=")[2]).isdigit() and is_finished(path)
        }
        own = dict(sorted(own.items())) or ({0: place} if is_finished(place) else {})
        if own:
            found[method] = own
    return found


def is_finished(run: Path) -> bool:
    """Return whether a run has saved its model."""
    return (run / "model" / INDEX).is_file()


def answered(name: str, claim: dict, runs: dict[str, dict[int, Path]], cfg: DictConfig) -> dict:
    """Return a claim's numbers: of each method and of its paired difference from the one it is compared with."""
    scores, images = scored(name, runs, cfg, claim.get("images", "*"))
    methods = {}
    for method, reference in references(claim, list(runs)).items():
        found = training(runs[method]) | {"seeds": sorted(runs[method]), "against": reference}
        found["metrics"] = {m: mean_and_interval(averaged(scores[method], m), cfg.seed) for m in cfg.measured}
        if reference is not None:
            found["difference"] = {m: compared(scores, method, reference, m, cfg.seed) for m in cfg.measured}
        methods[method] = found
    made = provenance(command_line(), cfg.seed)
    facts = {key: made[key] for key in ("command", "date", "commit", "machine")}
    return {"benchmark": cfg.set, "images": images, "methods": methods, "made_by": facts}


def references(claim: dict, methods: list[str]) -> dict[str, str | None]:
    """Return method -> the one that it is compared with, of those that were run; None for none."""
    if claim["against"] == "previous":
        before = dict(zip(methods, [None, *methods], strict=False)) | claim.get("branches", {})
    else:
        before = dict.fromkeys(methods, claim["against"])
    return {
        method: before[method] if before[method] in methods and before[method] != method else None for method in methods
    }


def compared(
    scores: dict[str, dict[int, Scores]], method: str, reference: str, metric: str, seed: int
) -> dict[str, float | None]:
    """Return the difference of two methods: mean and bootstrap interval over images, and half that between seeds.

    Image by image, of the seeds that both have; of their means where they have none in common.
    """
    means = {name: {k: float(np.nanmean(own[metric])) for k, own in seeds.items()} for name, seeds in scores.items()}
    between = intervals.compare(means[method], means[reference], intervals.noise_of(list(means.values())))
    common = scores[method].keys() & scores[reference].keys()
    sides = []
    for name in (method, reference):
        sides.append(averaged({k: own for k, own in scores[name].items() if not common or k in common}, metric))
    return mean_and_interval(sides[0] - sides[1], seed) | {"between_seeds": between.half if between else None}


def scored(
    name: str, runs: dict[str, dict[int, Path]], cfg: DictConfig, chosen: str = "*"
) -> tuple[dict[str, dict[int, Scores]], int]:
    """Return method -> seed -> scores of the images whose names match `chosen`, and the number of those."""
    models = {f"{method}, seed {seed}": path / "model" for method, own in runs.items() for seed, path in own.items()}
    arguments = [f"benchmark={cfg.set}", f"run_name=findings_{name}", f"seed={cfg.seed}", "report=false"]
    evaluation = composed("eval", *arguments)
    evaluation.data.root, evaluation.limit = cfg.data.root, cfg.limit
    evaluation.controls = {label: str(path) for label, path in models.items()}
    evaluation.methods = [LQ, *models]
    plan = plan_from_config(evaluation, command_line())
    plan = replace(
        plan, metrics={metric: plan.metrics[metric] for metric in cfg.measured}, model=str(next(iter(models.values())))
    )
    result = evaluate(plan, choose_device(), notify=lambda text: tqdm.write(str(text)))
    if result is None:
        raise InputError("findings are made by one process")
    counts = np.array([fnmatchcase(stem, chosen) for stem in result.scores.stems])
    found: dict[str, dict[int, Scores]] = {}
    for method, seeds in runs.items():
        own = {seed: result.scores.scores[f"{method}, seed {seed}"] for seed in seeds}
        found[method] = {seed: {m: np.asarray(values)[counts] for m, values in of.items()} for seed, of in own.items()}
    return found, int(counts.sum())


def averaged(seeds: Mapping[int, Scores], metric: str) -> np.ndarray:
    """Return a metric of each image, averaged over seeds."""
    return np.mean([scores[metric] for scores in seeds.values()], 0)


def training(seeds: Mapping[int, Path]) -> dict:
    """Return what a method's runs took: seconds (their mean), trained values, and the last stage's curve of PSNR.

    The curve is of the lowest seed: seconds of training, stages before included, and the validation's psnr_rgb.
    """
    by_seed = [summaries(path) for path in seeds.values()]
    seconds = [sum(stage["seconds"] for stage in stages.values()) for stages in by_seed]
    first = by_seed[0]
    last = list(first)[-1]
    before = sum(stage["seconds"] for name, stage in first.items() if name != last)
    lines = JsonLines(next(iter(seeds.values())) / last / "log.jsonl").read()
    step_seconds = first[last]["seconds"] / max(1, first[last]["steps"])
    key = "validation/psnr_rgb"
    curve = [[round(before + line["step"] * step_seconds, 1), line[key]] for line in lines if key in line]
    trained = trained_values([next(iter(seeds.values())) / name / "final" / TRAINED for name in first])
    return {"seconds": float(np.mean(seconds)), "trained_parameters": trained, "curve": curve}


def trained_values(results: Sequence[Path]) -> int:
    """Return how many values the results of a run's stages hold, codes included; those of several stages count once."""
    sizes = {}
    for path in results:
        for name, (shape, _) in read_header(path).items():
            if "_codebook." not in name or name.endswith(".embed"):  # without the moving averages that make the codes
                sizes[name.removeprefix("restorer.")] = prod(shape)
    return sum(sizes.values())


def draw(claim: dict, path: Path) -> None:
    """Draw a claim: each metric of each method with its interval, or validation's PSNR over seconds."""
    need("matplotlib", "'lafr[figures]'")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    if claim["plot"] == "seconds":
        axes = figure.add_subplot()
        for method, found in claim["methods"].items():
            axes.plot(*np.array(found["curve"]).reshape(-1, 2).T, "o-", ms=3, label=method)
        axes.set(xlabel="seconds of training", ylabel="PSNR in validation, dB")
        axes.legend(fontsize=8)
    else:
        metrics = list(next(iter(claim["methods"].values()))["metrics"])
        for place, metric in enumerate(metrics, start=1):
            axes = figure.add_subplot(1, len(metrics), place)
            values = [found["metrics"][metric] for found in claim["methods"].values()]
            mean, low, high = (np.array([value[key] for value in values], float) for key in ("mean", "low", "high"))
            places = np.arange(len(values))[::-1]
            axes.errorbar(mean, places, xerr=[mean - low, high - mean], fmt="o", ms=4)
            axes.set_yticks(places, list(claim["methods"]) if place == 1 else [""] * len(values), fontsize=8)
            axes.set_title(f"{describe(metric).label} {describe(metric).direction}", fontsize=9)
            axes.tick_params(axis="x", labelsize=7)
    save_svg(figure, path)


def findings_table(record: dict) -> str:
    """Return the page's text: each claim's question, answer, plot, table and what it does not say."""
    return "\n\n".join(section(name, claim) for name, claim in record["claims"].items())


def section(name: str, claim: dict) -> str:
    """Return a claim's part of the page; "not run" where it was not."""
    parts = [f"## {claim['question']}"]
    if claim["methods"]:
        made = claim["made_by"]
        facts = (
            f"{claim['benchmark']}, {claim['images']} images, {made['date']}, {made['machine']}: `{made['command']}`"
        )
        parts += [answer(claim), f"![{claim['question']}](findings/{name}.svg)", table_of(claim)]
        parts += [f"**What it does not say.** {claim['says_not']}", f"{facts}, from the runs of"]
    if claim["not_run"]:
        parts.append(f"**Not run:** {', '.join(claim['not_run'])}.")
    return "\n\n".join([*parts, f"    {claim['command']}"])


def answer(claim: dict) -> str:
    """Return the differences in the first two metrics, in words and numbers."""
    lines = []
    for method, found in claim["methods"].items():
        if found["against"] is None:
            continue
        parts = []
        for metric in list(found["metrics"])[:2]:
            parts.append(f"{describe(metric).label} {difference(found, metric)}, {verdict(found, metric)}")
        lines.append(f"- {method}, compared with {found['against']}: {'; '.join(parts)}")
    return "\n".join(lines)


def verdict(found: dict[str, Any], metric: str) -> str:
    """Return "ahead" or "behind" where a difference is beyond both of its intervals, else "within noise"."""
    value = found["difference"][metric]
    if value["mean"] is None:
        return "not measured"
    towards_zero = value["mean"] - value["low"] if value["mean"] > 0 else value["high"] - value["mean"]
    half = max(towards_zero, value["between_seeds"] or 0)
    return intervals.Comparison(value["mean"], half, len(found["seeds"])).verdict(describe(metric).direction)


def table_of(claim: dict) -> str:
    """Return the table of a claim: means, and below each its difference."""
    metrics = list(next(iter(claim["methods"].values()))["metrics"])
    head = [f"{describe(m).label} {describe(m).direction}".strip() for m in metrics]
    rows = []
    for method, found in claim["methods"].items():
        cells = []
        for metric in metrics:
            mean = found["metrics"][metric]["mean"]
            text = "–" if mean is None else f"{mean:.{describe(metric).digits}f}"
            cells.append(f"{text}<br>{difference(found, metric)}" if found["against"] else text)
        rows.append(
            [method, len(found["seeds"]), f"{found['seconds']:,.0f}", f"{found['trained_parameters']:,}", *cells]
        )
    note = (
        "Below each mean its difference from the method that it is compared with, image by image, with the 95 % "
        "bootstrap interval over images; after ±, half of the 95 % t-interval between seeds, where there are several. "
        "Seconds are of a machine that did other work too: they bound the cost from above."
    )
    return f"{markdown.table(['method', 'seeds', 'seconds', 'trained values', *head], rows)}\n\n{note}"


def difference(found: dict[str, Any], metric: str) -> str:
    """Return a difference with its intervals."""
    value, digits = found["difference"][metric], describe(metric).digits
    if value["mean"] is None:
        return "–"
    text = f"{value['mean']:+.{digits}f} ({value['low']:+.{digits}f} to {value['high']:+.{digits}f})"
    return text if value["between_seeds"] is None else f"{text} ± {value['between_seeds']:.{digits}f}"
