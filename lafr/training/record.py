"""The record of a run: its settings, what they point at, and the machine; compared when the run is continued."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lafr.data.faces.sources import FaceSet
from lafr.errors import InputError, setting
from lafr.images import to_uint8
from lafr.models.restorer import Restorer
from lafr.provenance import changes, versions
from lafr.storage import (
    MANIFEST,
    DamagedError,
    read_json,
    read_sealed,
    sha256_of_tensors,
    sha256_of_values,
    write_sealed,
)

RECORDS = ("config.json", "config.copy.json")  # in the run's folder; the second is read where the first is damaged

# Settings that may change between a run and its continuation, with what is inside them: nothing that is learned
# depends on them. A run that was moved is the same run.
FREE = (
    "run_dir",
    "run_name",
    "preflight",
    "trainer.trackers",
    "trainer.tracking",
    "trainer.log_every",
    "trainer.log_pairs",
    "trainer.latent_cache",
    "trainer.validate_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
    "trainer.num_workers",
)
# These may change too, and it is said: they change rounding or the validation, or what they point at is compared.
REPORTED = (
    "trainer.accumulation",
    "trainer.gradient_checkpointing",
    "trainer.cache_latents",
    "trainer.feature_cache_gb",
    "trainer.validation_images",
    "data",
    "model.build.folder",
    "model.build.offline",
    "model.build.remedy",
    "model.build.variant",
)


def remember(run_dir: Path, config: Mapping, points_to: Mapping[str, str], machine: Mapping) -> list[str]:
    """Write the record of a run, twice; return what has changed since it began, a line each.

    Raises InputError where the run in this folder was started with other settings, or where both records are lost.

    Args:
        run_dir: of the run.
        config: the settings.
        points_to: sha256 of what settings only point at, see `pointed_at`.
        machine: processes, threads, versions: what may change the rounding.
    """
    before, said = read_record(run_dir)
    if before is not None:
        stages = config.get("stages", [])
        begun = [name for name in stages if any((run_dir / name).glob(f"*/{MANIFEST}"))]
        bound: list[str] = []
        for name, old, new in changes(before["config"], dict(config)):
            kind = freedom(name, old, new, stages, begun)
            if kind != "free":
                (bound if kind == "bound" else said).append(f"{name}: {old} -> {new}")
        for name, old, new in changes(before["points_to"], dict(points_to)):
            (said if name == "held_out" else bound).append(f"{name}: {str(old)[:12]} -> {str(new)[:12]}")
        if bound:
            raise InputError(
                f"{str(run_dir)!r} was started with other settings ({'; '.join(bound[:4])})",
                remedy=f"choose another {setting('run_name')} or delete the folder",
            )
        said += [f"{name}: {old} -> {new}" for name, old, new in changes(before["machine"], dict(machine))]
    for name in RECORDS:
        write_sealed({"config": config, "points_to": points_to, "machine": machine}, run_dir / name)
    return said


def read_record(run_dir: Path) -> tuple[dict | None, list[str]]:
    """Return the run's record, from the copy where it is damaged, and what is damaged; None for a new run."""
    damage: list[str] = []
    for name in RECORDS:
        try:
            return read_sealed(run_dir / name), damage
        except DamagedError as error:
            damage.append(error.args[0])
    if not any((run_dir / name).exists() for name in RECORDS) and not any(run_dir.glob(f"*/*/{MANIFEST}")):
        return None, []
    raise InputError(
        f"the record of the run in {str(run_dir)!r} is lost: {'; '.join(damage)}",
        remedy=f"restore one of them from a copy, choose another {setting('run_name')} or delete the folder",
    )


def settings_of(run_dir: Path) -> dict:
    """Return the settings of a run, for what is told of it; raises InputError where there is none.

    A run of version 0.1 has them alone in its record.
    """
    path = run_dir / RECORDS[0]
    if not path.is_file():
        raise InputError(f"{str(run_dir)!r} is no folder of a run: it has no {RECORDS[0]}")
    record = read_json(path)
    return record.get("config", record)


def freedom(name: str, old: Any, new: Any, stages: Sequence[str], begun: Collection[str]) -> str:
    """Return "free", "reported" or "bound": what it means for a run that a setting has changed.

    Args:
        name: of the setting, dotted.
        old, new: its values; None where it is not there.
        stages: of the run now.
        begun: those that have trained.
    """
    for kind, names in (("free", FREE), ("reported", REPORTED)):
        if any(f"{name}.".startswith(f"{other}.") for other in names):
            return kind
    if name == "stages" and old and new and new[: len(old)] == old:
        return "reported"  # further ones, after those it had
    part, _, rest = name.partition(".")
    stage, _, key = rest.partition(".")
    if part == "stage" and old is None and stage not in begun:
        return "free"
    if part == "stage" and key == "max_steps" and new is not None and new > old:
        # a later stage that has begun did so from this one's result
        return "bound" if set(begun) & set(stages[stages.index(stage) + 1 :]) else "reported"
    return "bound"


def pointed_at(model: torch.nn.Module, faces: FaceSet, held_out: FaceSet) -> dict[str, str]:
    """Return the sha256 of what a run's settings only point at: lists of faces, and the base model's weights."""
    found = {"faces": sha256_of_faces(faces), "held_out": sha256_of_faces(held_out)}
    if isinstance(model, Restorer):  # a base model of one's own has no weights from elsewhere
        found["codec"] = model.codec.fingerprint()
        weights = model.denoiser.unet.state_dict()
        # the LoRA's values are the run's own
        found["unet"] = sha256_of_tensors({name: value for name, value in weights.items() if "lora_" not in name})
    return found


def sha256_of_faces(faces: FaceSet, looked_at: int = 8) -> str:
    """Return the sha256 of the faces' names, in order, and of the pixels of some of them, evenly spaced."""
    names = [faces.name(i) for i in range(len(faces))]
    places = np.linspace(0, len(faces) - 1, min(looked_at, len(faces))).round().astype(int)
    pixels = [sha256_of_tensors({"": to_uint8(faces[int(i)])}) for i in places]
    return sha256_of_values(names, pixels)


def machine_of(processes: int, device: str) -> dict:
    """Return what the rounding of a run depends on, besides its settings."""
    return {"processes": processes, "device": device, "threads": torch.get_num_threads(), "versions": versions()}
