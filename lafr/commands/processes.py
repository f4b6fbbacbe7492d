"""What the processes of one run need: to know of each other under SLURM, and to see the same folders."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from lafr.errors import InputError, setting

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 10.0  # seconds in which a file must appear on the other machines: NFS caches names for a while


def join_tasks() -> None:
    """Make this process one of a distributed run where the SLURM launcher started several tasks for one job.

    Sets the variables that `accelerate launch` sets, so that both start the same run.
    """
    if "submitit" not in sys.modules:  # what the launcher's jobs are started by
        return
    import submitit

    try:
        tasks = submitit.JobEnvironment().num_tasks
    except RuntimeError:  # submitit is imported, and this is no job
        return
    if tasks > 1:
        # one process sees all GPUs of its machine and takes the one of its number, as under `accelerate launch`
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


def require_shared(accelerator: "Accelerator", **folders: str | Path) -> None:
    """Raise InputError, in every process, unless all of them see the same folders.

    Args:
        accelerator: of the processes.
        folders: parameter -> folder; made where it is missing.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast_object_list, gather_object

    (mark,) = broadcast_object_list([f".shared_{uuid4().hex}"])
    for parameter, folder in folders.items():
        path = Path(folder) / mark
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        accelerator.wait_for_everyone()
        seen = gather_object([appears(path)])
        if accelerator.is_main_process:
            path.unlink(missing_ok=True)
        if not all(seen):
            raise InputError(
                f"{setting(parameter)} {str(folder)!r} is not shared: {seen.count(False)} of {len(seen)} processes do "
                "not see what process 0 wrote there",
                remedy="give a folder on a file system that all machines mount at the same path",
            )


def appears(path: Path) -> bool:
    """Return whether a file is there, or comes within `PATIENCE`."""
    give_up = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > give_up:
            return False
        time.sleep(0.2)
    return True
