"""What a run needs, looked for before its first step: packages, files, disk, memory, and stages that can be built.

Functions return `Finding`s; `report` makes one table of them, with the shell lines that fetch what is missing.
"""

import importlib.util
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves

from lafr.errors import InputError, Spell, as_python, setting
from lafr.models.base.model import NULL, planned_parts
from lafr.models.base.single_file import recognised
from lafr.models.base.sources import HUB, TEXT, Found, find, hub_answers
from lafr.networks import NEEDS, Needs
from lafr.training.counting import count_step, without_values
from lafr.training.objectives import Objective
from lafr.weights import EXTERNAL, FOLDER_VARIABLE, NO_DEPS, ExternalFile, locate

TIGHT = 0.8  # of the device's free memory: what is not counted, workspaces and fragments, may not fit beside it
# module -> what follows `pip install`, where the two differ
INSTALL = {
    "facexlib": NO_DEPS,
    "insightface": NO_DEPS,
    "dlib": "dlib-bin",
    "torch_fidelity": "torch-fidelity",
    "pyiqa": "'lafr[iqa]' # for non-commercial use only",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a run needs.

    Args:
        name: what it is: "awing_fan", "base model", "memory".
        there: whether the run can have it.
        where: its place or size; where it is missing, what was looked for.
        used_by: stages, metrics.
        fetch: shell line that gets it, where there is one.
        error: the InputError that says so, where one does; of something that is there, a doubt.
        needed: whether the run fails without it; a metric is only left out.
    """

    name: str
    there: bool
    where: str
    used_by: str = ""
    fetch: str = ""
    error: InputError | None = None
    needed: bool = True


def refused(name: str, error: InputError, used_by: str = "", fetch: str = "") -> Finding:
    """Return the finding of something that an InputError says is missing."""
    return Finding(name, False, error.args[0], used_by, fetch, error)


def report(findings: Sequence[Finding], spell: Spell = as_python) -> str:
    """Return a table of the findings, the missing ones last, and below it the shell lines that fetch what is not there.

    Parameters in it are spelled by `spell`.
    """
    # False sorts first: what is there above, what is missing below
    ordered = sorted(findings, key=lambda finding: (not finding.there, finding.needed))
    width = max([len(finding.name) for finding in ordered], default=0)
    lines = []
    for finding in ordered:
        used = f" ({finding.used_by})" if finding.used_by else ""
        where = InputError(finding.where).spelled(spell)
        state = "there" if finding.there else "MISSING" if finding.needed else "optional"
        lines.append(f"{state:<8} {finding.name:<{width}}  {where}{used}")
    fetch = dict.fromkeys(finding.fetch for finding in missing(findings) if finding.fetch)
    optional = dict.fromkeys(finding.fetch for finding in findings if not finding.there and finding.fetch)
    parts = {"what is missing": list(fetch), "what is optional": [line for line in optional if line not in fetch]}
    folder = [f'export {FOLDER_VARIABLE}="$PWD/weights" && mkdir -p "${FOLDER_VARIABLE}"']
    for what, commands in parts.items():
        if any(f"${FOLDER_VARIABLE}" in line for line in commands) and not os.environ.get(FOLDER_VARIABLE):
            commands, folder = folder + commands, []
        if commands:
            lines += ["", f"to get {what}:", *(f"  {line}" for line in commands)]
    return "\n".join(lines)


def missing(findings: Iterable[Finding]) -> list[Finding]:
    """Return what the run needs and cannot have."""
    return [finding for finding in findings if finding.needed and not finding.there]


def package(module: str, used_by: str = "") -> Finding:
    """Look for a package, without importing it."""
    # found, not imported: torch extensions and dlib take seconds to load
    there = importlib.util.find_spec(module) is not None
    install = install_line(module)
    return Finding(f"package {module}", there, "installed" if there else install, used_by, "" if there else install)


def install_line(module: str) -> str:
    """Return the shell line that installs a module's package, of the version whose files LAFR knows, if any."""
    carried = (file.remedy for file in EXTERNAL.values() if file.package == module and file.remedy.startswith("pip "))
    return next(carried, f"pip install {INSTALL.get(module, module)}")


def external_file(name: str, used_by: str = "") -> Finding:
    """Look for a file of `EXTERNAL` and compare its sha256."""
    try:
        return Finding(name, True, str(locate(name)), used_by)
    except InputError as error:
        reason = error.args[0].partition("; ")[0].partition(": download")[0]
        if reason == f"{name} is missing":
            reason = f"there is no {EXTERNAL[name].name}"
        return Finding(name, False, reason, used_by, fetch_line(EXTERNAL[name]), error)


def fetch_line(file: ExternalFile) -> str:
    """Return the shell line that gets an external file; a comment where only a browser does."""
    address = re.search(r"download (https://\S+)", file.remedy.replace(",", " "))
    folder = f'"${FOLDER_VARIABLE}"'
    # remedies are sentences for people; a command or an address can be taken out of them
    if file.remedy.startswith(("pip ", "npm ")):
        return file.remedy
    # Google Drive answers a plain download with a page that asks for confirmation
    if address is None or "drive.google" in address[1] or "#" in address[1]:
        return f"# {file.remedy}, into {folder}"
    url = address[1]
    if url.endswith(".zip"):
        archive = url.rpartition("/")[2]
        return f"curl -fLO {url} && unzip -j {archive} '*{file.name}' -d {folder}"
    return f"curl -fL -o {folder}/{file.name} {url}"


def networks(used: Mapping[str, Iterable[str]]) -> list[Finding]:
    """Look for what networks need.

    Args:
        used: name of a network, or of an external file -> the stages or metrics that use it.
    """
    packages: dict[str, list[str]] = {}
    files: dict[str, list[str]] = {}
    for name, users in used.items():
        needs = NEEDS.get(name) or Needs((name,) if name in EXTERNAL else ())
        for found, wanted in ((packages, needs.packages), (files, needs.files)):
            for part in wanted:
                found.setdefault(part, []).extend(users)
    by = {part: ", ".join(dict.fromkeys(users)) for part, users in (packages | files).items()}
    modules = [package(name, by[name]) for name in packages]
    absent = {name for name, found in zip(packages, modules, strict=True) if not found.there}
    # of a package that is missing, the files that it carries are not named too
    others = [name for name in files if EXTERNAL[name].package not in absent]
    return modules + [external_file(name, by[name]) for name in others]


def hub_weights(name: str, folder: str, used_by: str = "") -> Finding:
    """Look for a transformers model `folder`: a folder, or a repository in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    # a folder of this name is taken before the hub, as transformers does
    cached = None if Path(folder).is_dir() else try_to_load_from_cache(folder, "config.json")
    if Path(folder).is_dir() or isinstance(cached, str):
        return Finding(name, True, folder, used_by)
    return Finding(
        name, False, f"{folder} is neither a folder nor in the hub's cache", used_by, f"hf download {folder}"
    )


def base_model(
    sources: str | Sequence[str],
    remedy: str = "",
    offline: bool = False,
    variant: str | None = None,
    text: bool = False,
    expect: str | None = None,
) -> tuple[Finding, Found | None]:
    """Look for the base model on this machine; a hub that answers counts as there, as the run fetches it first.

    Another model than `expect` is refused, a folder's by its configurations, a single file's by its shapes.
    """
    fetch = remedy.partition(", or ")[0]
    try:
        found = find(sources, remedy, True, variant, text)
        look = planned_parts if found.path.is_dir() else recognised
        try:
            if expect or look is recognised:
                look(found.path, expect)
        except InputError as error:
            return refused("base model", error), found
        lacks = found.path.is_file() or not all((found.path / part / file).is_file() for part, file in TEXT.items())
        if text and lacks and not (found.path / NULL).is_file():
            where = f"{found.path} has no text encoder and no {NULL}, and the empty prompt is needed"
            return Finding("base model", False, where, "", fetch if fetch.startswith("hf ") else ""), found
        return Finding("base model", True, str(found.path)), found
    except InputError as error:
        hubs = [
            source for source in ([sources] if isinstance(sources, str) else sources) if str(source).startswith(HUB)
        ]
        # offline above: nothing is fetched by a check
        if hubs and not offline and not os.environ.get("HF_HUB_OFFLINE") and hub_answers():
            return Finding("base model", True, f"to be fetched from {hubs[0]}, about 4 GB"), None
        looked = error.args[0].partition("; hf download")[0].replace(" and offline is asked for", "")
        return Finding("base model", False, looked, "", fetch if fetch.startswith("hf ") else "", error), None


def stage(
    name: str,
    build: Callable[[], Objective],
    batch_size: int,
    accumulation: int,
    processes: int = 1,
    decode_crop: int | None = None,
    seed: int = 0,
) -> tuple[Finding, Objective | None]:
    """Build a stage's objective on the meta device, so that a mistake in the last stage is seen before the first."""
    try:
        with torch.device("meta"):
            # on the meta device even the full size fits: 1.0 billion values at no memory
            objective = build()
        if decode_crop:
            objective.decode_crops(decode_crop, seed)
        trained = objective.trained_state()
    except InputError as error:
        return refused(f"stage {name}", error), None
    except (RuntimeError, NotImplementedError) as error:  # a user's own part that computes with values as it is built
        return Finding(f"stage {name}", True, f"not counted: {str(error).splitlines()[0]}"), None
    if not trained:
        return Finding(f"stage {name}", True, "this model has nothing to train in it"), None
    shared = accumulation * processes
    if batch_size % shared:
        parts = f"{processes} processes x {accumulation} accumulation steps"
        where = f"{setting('PairStream.batch_size')} {batch_size} is no multiple of {shared}: {parts}"
        return Finding(f"stage {name}", False, where), objective
    return Finding(f"stage {name}", True, f"{batch_size // shared} faces at a time, {batch_size} to a step"), objective


def peak_bytes(
    objective: Objective, faces: int, resolution: int, mixed_precision: str = "no", checkpointing: bool = False
) -> int:
    """Count the peak memory of a step, without running it; an objective on the meta device is used up by it."""
    if checkpointing:
        objective.enable_gradient_checkpointing()
    # validation keeps no activations for a gradient and takes as many faces at a time: never more than a step
    return count_step(without_values(objective), faces, resolution, mixed_precision, operations=False).peak_bytes


def memory(
    peaks: Mapping[str, float], available: float | None = None, lighter: Callable[[str], str] = lambda stage: ""
) -> Finding:
    """Compare what each stage needs with what the device has; stages run one after the other.

    Args:
        peaks: name of a stage -> bytes of a step, of tensors alone: a device needs more.
        available: bytes of the device; None where they are unknown.
        lighter: maps the largest stage to settings that fit, in words.
    """
    each = ", ".join(f"{name} {gigabytes(peak)}" for name, peak in peaks.items())
    if available is None:
        return Finding("memory", True, f"counted: {each}; a device needs more than is counted")
    where = f"counted of {gigabytes(available)}: {each}; a device needs more than is counted"
    stage = max(peaks, key=lambda name: peaks[name])
    if peaks[stage] < TIGHT * available:
        return Finding("memory", True, where)
    said = f"stage {stage} needs {gigabytes(peaks[stage])} or more, the device has {gigabytes(available)} free"
    error = InputError(said, remedy=lighter(stage))
    return Finding("memory", peaks[stage] < available, error.args[0], error=error)


def gigabytes(count: float) -> str:
    """Return bytes as text."""
    return f"{count / 1e9:.1f} GB"


def disk(folder: str | Path, needed: int, what: str) -> Finding:
    """Compare the bytes that a run writes with the free ones of the disk that `folder` lies, or will lie, on."""
    place = Path(folder).absolute()
    # the run creates the folder; its disk is that of the first folder above it that exists
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    where = f"{needed / 1e9:.2f} GB of {free / 1e9:.1f} GB free in {shlex.quote(str(folder))}: {what}"
    return Finding("disk", free > needed, where)


def checkpoint_bytes(objectives: Iterable[Objective], keep: int) -> int:
    """Return what the stages write at most: of each its result and last checkpoint, of the largest `keep` + 1.

    A checkpoint holds the weights and AdamW's two averages of each.
    """
    # 4 bytes a value: training state is float32
    sizes = []
    for objective in objectives:
        # what terms of the loss learn is saved with it
        learned = [leaf for leaf in tree_leaves(objective.learned_state()) if torch.is_tensor(leaf)]
        sizes.append(4 * sum(value.numel() for value in (*objective.trained_state().values(), *learned)))
    # x 3: weights and AdamW's two averages; + 1: the new checkpoint is complete before the oldest goes
    return (1 + 3) * sum(sizes) + 3 * keep * max(sizes, default=0)


def latent_bytes(faces: int, objective: Objective, resolution: int) -> int:
    """Return the size of the cache of latents: plain and mirrored, float32."""
    codec = getattr(objective, "codec", None)
    if codec is None:
        return 0
    side = resolution // codec.downscale
    # [faces, plain and mirrored, C, h, w] x 4 bytes
    return faces * 2 * 4 * codec.latent_channels * side**2
