"""TensorBoard and wandb: where curves, images and the configuration of a run go, in the run's own folder."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from lafr.storage import read_json, write_json

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
            trackers.append(WandBTracker(project, tags=list(tags), mode=mode, **settings))
        else:
            trackers.append(name)
    return trackers


def identity(folder: Path) -> str:
    """Return the id of the run in this folder, made at its first start."""
    path = folder / IDENTITY
    if not path.is_file():
        write_json({"id": uuid4().hex[:12]}, path)
    return str(read_json(path)["id"])


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


def track_image(accelerator: Accelerator, name: str, path: Path, step: int) -> None:
    """Log an image file to every tracker that takes images."""
    if not (accelerator.is_main_process and accelerator.trackers and path.is_file()):
        return
    pixels = np.asarray(Image.open(path).convert("RGB"))  # [H, W, 3], 8-bit
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.tracker.add_image(name, pixels, global_step=step, dataformats="HWC")
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
