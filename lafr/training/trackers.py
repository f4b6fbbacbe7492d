"""TensorBoard and wandb: where curves, images and the configuration of a run go, in the run's own folder."""

import importlib
import json
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from lafr.storage import JsonLines, read_json, write_json

IDENTITY = "tracking.json"  # in the run's folder: the id under which a resumed run continues


def new_trackers(
    names: Sequence[str],
    folder: Path,
    run_name: str,
    config: Mapping,
    project: str = "lafr",
    tags: Sequence[str] = (),
    mode: str | None = None,
) -> list[GeneralTracker | str]:
    """Return a tracker for each name, for `Accelerator(log_with=...)`; other names than the two are Accelerate's own.

    Args:
        names: "tensorboard", "wandb".
        folder: of the run; `tensorboard/` and `wandb/` are made in it.
        run_name: as shown.
        config: of the run.
        project: wandb's project.
        tags: wandb's tags.
        mode: wandb's: "online", "offline", "disabled"; None as the environment's WANDB_MODE says.
    """
    trackers: list[GeneralTracker | str] = []
    for name in names:
        if name == "tensorboard":
            trackers.append(TensorBoardTracker("tensorboard", str(folder)))
        elif name == "wandb":
            folder.mkdir(parents=True, exist_ok=True)  # where it is missing wandb writes elsewhere
            # the id makes a resumed run continue its curves instead of starting others
            settings = dict(name=run_name, id=identity(folder), resume="allow", dir=str(folder), config=dict(config))
            tracker = WandBTracker(project, tags=list(tags), mode=mode, **settings)
            tracker.held = held_by_wandb(folder)  # before its own file is there
            trackers.append(tracker)
        else:
            trackers.append(name)
    return trackers


def identity(folder: Path) -> str:
    """Return the id of the run in this folder, made at its first start.

    Where its file is damaged, wandb's own files, `run-ID.wandb`, still name it.
    """
    path = folder / IDENTITY
    if path.is_file():
        try:
            return str(read_json(path)["id"])
        except (ValueError, KeyError, TypeError, RecursionError):
            print(f"warning: {str(path)!r} is damaged; it is written again", file=sys.stderr)
    files = sorted(folder.glob("wandb/*run-*/run-*.wandb"))
    write_json({"id": files[-1].stem.removeprefix("run-") if files else uuid4().hex[:12]}, path)
    return identity(folder)


def held_by_wandb(folder: Path) -> set[tuple[int, str]]:
    """Return (step, key) of every number and image in the files of wandb's earlier starts of a run."""
    if not (paths := sorted(folder.glob("wandb/*run-*/*.wandb"))):
        return set()
    proto: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")  # its classes are made as it is imported
    held = set()
    for path in paths:
        for data in wandb_records(path.read_bytes()):
            record = proto.Record()
            try:
                record.ParseFromString(data)
                # an image is a nested record: its key comes with the names of its parts
                items = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                step = int(json.loads(items["step"])) if "step" in items else None
            except Exception:  # damaged, on which protobuf and json raise their own: it is logged again
                continue
            if step is not None:
                held |= {(step, key) for key in items}
    return held


def wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: 7 bytes, then LevelDB's log format; a kill may have cut off the last one."""
    place, whole, block = 7, b"", 1 << 15
    while place + 7 <= len(data):
        if (left := block - place % block) < 7:  # a header never crosses the end of a block of 32 KiB
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)  # checksum, bytes, part of a record
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if place > len(data):
            return
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def complete(accelerator: Accelerator, folder: Path, stages: Mapping[str, int]) -> None:
    """Log to wandb what the stages' own logs hold and its files don't: it loses the last seconds of a killed run.

    TensorBoard's events are written at each step.

    Args:
        accelerator: holds the trackers.
        folder: of the run.
        stages: name -> steps of the stages before it.
    """
    trackers = accelerator.trackers if accelerator.is_main_process else ()
    for tracker in (one for one in trackers if one.name == "wandb"):
        for stage, before in stages.items():
            for line in JsonLines(folder / stage / "log.jsonl").read():
                if (own := line.pop("step", None)) is None:
                    continue
                step = before + own
                lost = {f"{stage}/{key}": value for key, value in line.items()}
                lost = {key: value for key, value in lost.items() if (step, key) not in tracker.held}
                if lost:
                    tracker.tracker.log({"step": step, **lost})
                image = f"{stage}/validation"
                if any(key.startswith("validation/") for key in line) and (step, image) not in tracker.held:
                    track_image(accelerator, image, validation_image(folder / stage, own), step, tracker)


def validation_image(folder: Path, step: int) -> Path:
    """Return the image of a stage's validation at a step, as `Validation` writes it."""
    return folder / "validation" / f"step_{step:08d}.png"


def begin(accelerator: Accelerator, config: Mapping) -> None:
    """Write the configuration as a text of TensorBoard, wandb has it from its start; make `step` wandb's x-axis."""
    if accelerator.is_main_process:
        for tracker in accelerator.trackers:
            if tracker.name == "wandb":
                tracker.tracker.define_metric("step")
                tracker.tracker.define_metric("*", step_metric="step")
            elif tracker.name == "tensorboard":
                text = json.dumps(config, indent=1, ensure_ascii=False)
                tracker.tracker.add_text("configuration", f"```json\n{text}\n```", global_step=0)


def track(accelerator: Accelerator, values: Mapping[str, float], step: int) -> None:
    """Log numbers of a step to every tracker."""
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        if tracker.name == "wandb":
            # not by wandb's own step: it keeps a row until the next step, so that a killed run loses the last one
            tracker.tracker.log({"step": step, **values})
        else:
            tracker.log(dict(values), step=step)


def track_image(accelerator: Accelerator, name: str, path: Path, step: int, only: GeneralTracker | None = None) -> None:
    """Log an image file to every tracker that takes images, or to one."""
    if not (accelerator.is_main_process and accelerator.trackers and path.is_file()):
        return
    pixels = np.asarray(Image.open(path).convert("RGB"))  # [H, W, 3], 8-bit
    for tracker in [only] if only else accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.tracker.add_image(name, pixels, global_step=step, dataformats="HWC")
            tracker.tracker.flush()
        elif tracker.name == "wandb":
            from wandb import Image as WandbImage

            tracker.tracker.log({"step": step, name: WandbImage(pixels)})


def where_to_look(accelerator: Accelerator, folder: Path) -> list[str]:
    """Return a line for each tracker: the command or the address that shows its curves."""
    lines = []
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            lines.append(f"curves: tensorboard --logdir {folder / 'tensorboard'}")
        elif tracker.name == "wandb":
            run: Any = tracker.tracker
            lines.append(f"curves: {run.url or f'wandb sync {folder}/wandb/offline-run-*'}")
    return lines
