"""What eval.py writes and prints: the record, the report, the curve, the table and where everything lies."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path


def record_of(
    cfg,
    command: str,
    result,
    metrics: Mapping,
    not_measured: Mapping,
    models: Mapping,
    groups: str | None,
    folder: Path,
) -> dict:
    """Return the record of an evaluation: what result.json holds."""
    from omegaconf import OmegaConf

    from lafr.evaluation import trained_on
    from lafr.evaluation.sweep import row_name
    from lafr.metrics.card import card_of
    from lafr.provenance import provenance

    rows = result.summary(cfg.seed)
    sweep = {f"{f:g}": rows.pop(row_name(f), None) or rows["LAFR"] for f in cfg.sweep or ()}
    pictures = {name: os.path.relpath(where, folder) for name, where in result.folders.items()}
    return {
        "benchmark": cfg.benchmark.name,
        "images": len(result.stems),
        "protocol": protocol_name(cfg),
        "rows": rows,
        "metrics": {name: asdict(card_of(name, metric)) for name, metric in metrics.items()},
        "trained_on": trained_on({row: model for row, model in models.items() if row in rows}, metrics),
        "not_measured": not_measured,
        "latents": result.latents,
        "pictures": {name: where for name, where in pictures.items() if name in (*rows, "HQ", "LQ input")},
        **({"sweep": sweep} if sweep else {}),
        **({"groups": groups} if groups else {}),
        **provenance(command, cfg.seed),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }


def protocol_name(cfg) -> str | None:
    """Return the name of the protocol that was chosen, if one was."""
    return cfg.protocol.name if cfg.get("protocol") else None


def groups_of(cfg) -> str | None:
    """Return the CSV that says which group an image is of: `cfg.groups`, or NAME_info.csv in or beside the set."""
    from lafr.errors import InputError

    if cfg.groups is not None:
        if not Path(cfg.groups).is_file():
            raise InputError(f"groups={cfg.groups!r} does not exist; give a CSV with a line an image, or groups=null")
        return str(cfg.groups)
    root = cfg.benchmark.build.get("root")
    places = [folder / f"{cfg.benchmark.name}_info.csv" for folder in (Path(root), Path(root).parent)] if root else []
    return next((str(place) for place in places if place.is_file()), None)


def finish(cfg, record: dict, result, folder: Path, found: list[str], published: str, axes) -> None:
    """Write the record, the report and the curve; print the table and where everything lies."""
    from lafr.evaluation.sweep import write_curve
    from lafr.evaluation.tables import print_table
    from lafr.storage import write_json

    write_json(record, folder / "result.json")
    print_table(record)
    for line in found:
        print(f"checked   {line}")
    for what, (kept, of) in result.kept.items():
        if kept:
            print(f"kept      {kept:,} of {of:,} {what} from an earlier run")
    made = [folder / "result.json", folder / "scores.csv"]
    faces = folder / "faces.png"
    columns = "LQ | restored | HQ" if "HQ" in record["pictures"] else "LQ | restored"
    shown = f"{faces} ({columns}: best, median, worst), " if faces.is_file() else ""
    print(f"pictures  {shown}{os.path.commonpath(result.folders.values())} (a folder each row)")
    print(f"numbers   {', '.join(map(str, made))}")
    curve = []
    if axes:
        beside = {row: of for row, of in record["rows"].items() if row == "LQ input"}  # the ceiling is far away
        title = f"{record['benchmark']}, {record['images']} images: LAFR at fidelity {', '.join(record['sweep'])}"
        curve = write_curve(record["sweep"], beside, *axes, title, folder)
        print(f"curve     {', '.join(map(str, curve))}")
    if cfg.report:
        from lafr.evaluation.report import write_report

        print(f"report    {write_report(record, folder)}")
    if cfg.publish:
        target = Path(published + (f"_{record['protocol']}" if record["protocol"] else "") + ".json")
        write_json({key: value for key, value in record.items() if key not in ("pictures", "groups")}, target)
        shutil.copyfile(folder / "scores.csv", target.with_suffix(".csv"))
        for path in curve:
            shutil.copyfile(path, target.with_name(f"{target.stem}_curve{path.suffix}"))
        print(f"published {target}")
    if cfg.explain:
        print(explained(record, folder))


def explained(record: dict, folder: Path) -> str:
    """Return how the numbers of protocols differ, with those of each protocol that was scored in this folder."""
    from lafr.evaluation.protocols import explain

    work = folder.parent if record["protocol"] else folder
    found = [json.loads(path.read_text()) for path in [*work.glob("result.json"), *sorted(work.glob("*/result.json"))]]
    return explain([*(other for other in found if other["protocol"] != record["protocol"]), record])
