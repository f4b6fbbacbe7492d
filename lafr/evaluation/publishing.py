"""Write and print what an evaluation found: the record, the report, the curve, the table."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lafr.evaluation.plan import HQ, LQ, MODEL, Plan
from lafr.evaluation.protocols import explain
from lafr.evaluation.report import write_report
from lafr.evaluation.run import Result
from lafr.evaluation.sweep import name_at, write_curve
from lafr.evaluation.tables import read_result
from lafr.evaluation.terminal import print_table
from lafr.metrics.ntire import ALLOWED, GATE_METRIC, NEEDED, QALIGN, THRESHOLDS, faces_below, passes, total_score
from lafr.provenance import provenance
from lafr.storage import write_json


def publish(plan: Plan, result: Result) -> None:
    """Write result.json, the report and the curve into `plan.folder`; print the table and the files.

    With `plan.publish` the numbers also go to `results/NAME/BENCHMARK.json`, in the current folder.
    """
    record, folder = record_of(plan, result), plan.folder
    write_json(record, folder / "result.json")
    print_table(record)
    for line in result.checked:
        print(f"checked   {line}")
    for what, (kept, total) in result.scores.kept.items():
        if kept:
            print(f"kept      {kept:,} of {total:,} {what} from an earlier run")
    faces = folder / "faces.png"
    columns = "LQ | restored | HQ" if HQ in record["pictures"] else "LQ | restored"
    shown = f"{faces} ({columns}: best, median, worst), " if faces.is_file() else ""
    print(f"images    {shown}{os.path.commonpath(result.scores.folders.values())} (a folder for each method)")
    print(f"numbers   {folder / 'result.json'}, {folder / 'scores.csv'}")
    curve = draw_curve(record, result.axes, folder) if result.axes else []
    if curve:
        print(f"curve     {', '.join(map(str, curve))}")
    if plan.report:
        print(f"report    {write_report(record, folder)}")
    if plan.publish:
        print(f"published {copy_to_results(plan, record, curve)}")
    if plan.explain:
        print(explained(record, folder))


def record_of(plan: Plan, result: Result) -> dict:
    """Return what result.json holds. Its key "rows" is method -> metric -> mean, low and high."""
    scores = result.scores
    rows = scores.summary(plan.seed)
    sweep = {f"{f:g}": rows.pop(name_at(f)) if name_at(f) in rows else rows[MODEL] for f in plan.sweep}
    not_measured, gate = dict(result.not_measured), {}
    if plan.protocol == "ntire26":
        not_measured |= add_total_scores(rows)
        gate = add_gate(rows, plan.benchmark, scores.scores)
    images = {name: os.path.relpath(where, plan.folder) for name, where in scores.folders.items()}
    return {
        "benchmark": result.name,
        "images": len(scores.stems),
        "set": {"name": plan.benchmark, "images": result.of, "filter": result.filter},
        "resolution": result.side,
        "protocol": plan.protocol,
        "rows": rows,
        "metrics": {name: asdict(card) for name, card in result.cards.items()},
        "trained_on": result.trained_on,
        "training_sets": result.training,
        "not_measured": not_measured,
        **({"gate": gate} if gate else {}),
        "latents": scores.latents,
        "pictures": {name: where for name, where in images.items() if name in (*rows, HQ, LQ)},
        **({"sweep": sweep} if sweep else {}),
        **({"groups": plan.groups} if plan.groups else {}),
        **provenance(plan.command, plan.seed),
        "config": plan.config,
    }


def add_total_scores(rows: dict[str, dict]) -> dict[str, str]:
    """Add to each method what NTIRE 2026 ranks by; return what could not be computed, and why."""
    lacking = set()
    for scores in rows.values():
        means = {name: scores[name]["mean"] for name in NEEDED if scores.get(name, {}).get("mean") is not None}
        missing = [name for name in NEEDED if name not in means]
        lacking |= set(missing)
        if not missing:
            scores["ntire26_score"] = {"mean": total_score(means), "low": None, "high": None}
        elif missing == [QALIGN]:
            value = total_score(means, without_qalign=True)
            scores["ntire26_score_without_qalign"] = {"mean": value, "low": None, "high": None}
    return {"ntire26_score": f"it needs {', '.join(n for n in NEEDED if n in lacking)}"} if lacking else {}


def add_gate(rows: dict[str, dict], benchmark: str, scores: Mapping[str, Mapping]) -> dict:
    """Add to each method how many faces are below NTIRE's identity gate; return the gate and who passes it.

    Empty for a set without a threshold, and where AdaFace is missing.
    """
    threshold = THRESHOLDS.get(benchmark)
    below = {}
    for method, of in scores.items():
        if threshold is not None and method in rows and GATE_METRIC in of:
            below[method] = faces_below(of[GATE_METRIC], threshold)
            rows[method]["ntire26_faces_below"] = {"mean": below[method], "low": None, "high": None}
    if not below:
        return {}
    verdicts = {method: passes(count) for method, count in below.items()}
    return {"metric": GATE_METRIC, "threshold": threshold, "allowed": ALLOWED, "below": below, "passed": verdicts}


def draw_curve(record: dict, axes: tuple[str, str], folder: Path) -> list[Path]:
    """Draw the fidelity-realism curve next to the input; the ceiling would lie far away."""
    others = {name: scores for name, scores in record["rows"].items() if name == LQ}
    title = f"{record['benchmark']}, {record['images']} images: LAFR at fidelity {', '.join(record['sweep'])}"
    return write_curve(record["sweep"], others, *axes, title, folder)


def copy_to_results(plan: Plan, record: dict, curve: list[Path]) -> Path:
    """Copy the numbers and the curve, without what only makes sense on this machine; return the JSON's path."""
    suffix = f"_{plan.protocol}" if plan.protocol else ""
    target = Path(f"results/{plan.name}/{plan.benchmark}{suffix}.json")
    write_json({key: value for key, value in record.items() if key not in ("pictures", "groups")}, target)
    shutil.copyfile(plan.folder / "scores.csv", target.with_suffix(".csv"))
    for path in curve:
        shutil.copyfile(path, target.with_name(f"{target.stem}_curve{path.suffix}"))
    return target


def explained(record: dict, folder: Path) -> str:
    """Return how the protocols' numbers differ, for each protocol that was scored in this folder."""
    work = folder.parent if record["protocol"] else folder
    paths = [*work.glob("result.json"), *sorted(work.glob("*/result.json"))]
    found = [read_result(path) for path in paths]
    return explain([*(other for other in found if other.get("protocol") != record["protocol"]), record])
