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
from typing import Any

import torch

from lafr.errors import InputError, Spell, as_python, setting
from lafr.losses.appearance import PerceptualLPIPS
from lafr.models.adapter import Adapter, build_adapter
from lafr.models.base.model import Base, read_scheduler
from lafr.models.base.sources import CONFIGS, HUB, Found, NotThere, find, hub_answers
from lafr.models.base.supported import KNOWN
from lafr.models.codec import Codec
from lafr.models.denoiser import DENOISER, Denoiser, hollow_unet
from lafr.models.loading import planned, read_config, require_shapes
from lafr.models.lora import WEIGHTS as LORA_WEIGHTS
from lafr.models.restorer import ADAPTER_WEIGHTS, Restorer, base_of, model_folder
from lafr.models.saved import Saved
from lafr.networks import NEEDS, Needs
from lafr.networks.perceptual import untrained_lpips
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
    """

    name: str
    there: bool
    where: str
    used_by: str = ""
    fetch: str = ""
    error: InputError | None = None


def refused(name: str, error: InputError, used_by: str = "", fetch: str = "") -> Finding:
    """Return the finding of something that an InputError says is missing."""
    return Finding(name, False, error.args[0], used_by, fetch, error)


def report(findings: Sequence[Finding], spell: Spell = as_python) -> str:
    """Return a table of the findings, the missing ones last, and below it the shell lines that fetch those.

    Parameters in it are spelled by `spell`.
    """
    # False sorts first: what is there above, what is missing below
    ordered = sorted(findings, key=lambda finding: not finding.there)
    width = max([len(finding.name) for finding in ordered], default=0)
    lines = []
    for finding in ordered:
        used = f" ({finding.used_by})" if finding.used_by else ""
        where = InputError(finding.where).spelled(spell)
        lines.append(f"{'there' if finding.there else 'MISSING':<8} {finding.name:<{width}}  {where}{used}")
    fetch = list(dict.fromkeys(finding.fetch for finding in missing(findings) if finding.fetch))
    if any(f"${FOLDER_VARIABLE}" in line for line in fetch) and not os.environ.get(FOLDER_VARIABLE):
        fetch.insert(0, f'export {FOLDER_VARIABLE}="$PWD/weights" && mkdir -p "${FOLDER_VARIABLE}"')
    if fetch:
        lines += ["", "to get what is missing:", *(f"  {line}" for line in fetch)]
    return "\n".join(lines)


def missing(findings: Iterable[Finding]) -> list[Finding]:
    """Return what the run cannot have."""
    return [finding for finding in findings if not finding.there]


def package(module: str, used_by: str = "") -> Finding:
    """Look for a package, without importing it."""
    # found, not imported: torch extensions and dlib take seconds to load
    there = importlib.util.find_spec(module) is not None
    install = f"pip install {INSTALL.get(module, module)}"
    return Finding(f"package {module}", there, "installed" if there else install, used_by, "" if there else install)


def external_file(name: str, used_by: str = "") -> Finding:
    """Look for a file of `EXTERNAL` and compare its sha256."""
    try:
        return Finding(name, True, str(locate(name)), used_by)
    except InputError as error:
        reason = error.args[0].partition("; ")[0].partition(": download")[0]
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
    return [package(name, by[name]) for name in packages] + [external_file(name, by[name]) for name in files]


def clip_weights(folder: str, used_by: str = "") -> Finding:
    """Look for CLIP's weights in a folder or in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    # a folder of this name is taken before the hub, as transformers does
    cached = None if Path(folder).is_dir() else try_to_load_from_cache(folder, "config.json")
    if Path(folder).is_dir() or isinstance(cached, str):
        return Finding("clip", True, folder, used_by)
    return Finding(
        "clip", False, f"{folder} is neither a folder nor in the hub's cache", used_by, f"hf download {folder}"
    )


def base_model(
    sources: str | Sequence[str],
    remedy: str = "",
    offline: bool = False,
    variant: str | None = None,
    text: bool = False,
) -> tuple[Finding, Found | None]:
    """Look for the base model on this machine; a hub that answers counts as there, as the run fetches it first."""
    fetch = remedy.partition(", or ")[0]
    try:
        found = find(sources, remedy, True, variant, text)
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


def hollow_base(sources: str | Sequence[str], expect: str | None = None, variant: str | None = None, **_: Any) -> Base:
    """Return a base model without values, on the meta device: the one that is there, else of the expected shapes.

    The arguments are those of `Base.from_pretrained`.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    try:
        found = find(sources, "", True, variant)
        # a single file has no configurations: its shapes are those of the expected model
        if found.path.is_file():
            raise NotThere
        parts = {part: found.path / part for part in CONFIGS}
        settings = [read_config(parts["vae"]), read_config(parts["unet"])]
        with torch.device("cpu"):  # t*'s alpha is a number, not a shape
            scheduler = read_scheduler(parts["scheduler"])
    except (InputError, NotThere):
        if expect is None:
            raise InputError("the shapes of the base model are unknown until it is there") from None
        settings = [KNOWN[expect].vae, KNOWN[expect].unet]
        with torch.device("cpu"):
            scheduler = DDPMScheduler(**KNOWN[expect].scheduler)
    # shapes only: no weights are read, so the check takes seconds and little memory
    kinds = AutoencoderKL, UNet2DConditionModel
    vae, unet = (planned(kind, config, "base") for kind, config in zip(kinds, settings, strict=True))
    with torch.device("meta"):
        return Base(vae, unet, scheduler, torch.empty(1, 77, unet.config.cross_attention_dim))


def hollow_restorer(
    folder: str | Sequence[str],
    adapter: Adapter,
    resolution: int,
    timestep: int,
    scale_input: bool = True,
    lora: dict | None = None,
    text: str = "none",
    **base_settings: Any,
) -> Restorer:
    """Return a restorer without values, on the meta device; the arguments are those of `Restorer.from_base`."""
    base = hollow_base(folder, **base_settings)
    with torch.device("meta"):
        null = None if text == "none" else base.null_embedding
        denoiser = Denoiser.from_base(base.unet, base.scheduler, timestep, scale_input, text, null)
        if lora is not None:
            denoiser.add_lora(**lora)
        return Restorer(base.codec(), adapter, denoiser, resolution)


def hollow_saved(folder: str | Path = "mini", base: str | Sequence[str] | None = None, **_: Any) -> Restorer:
    """Return a saved restorer without values, on the meta device; the arguments are those of `from_pretrained`.

    The headers of its own files are read, so that one that is missing or does not fit is found.
    """
    from diffusers import AutoencoderKL

    place = model_folder(folder)
    saved = Saved.read(place)
    with torch.device("meta"):
        adapter = build_adapter(saved.adapter["kind"], **saved.adapter["settings"])
        if own := adapter.state_dict():
            require_files([place / ADAPTER_WEIGHTS], own)
        if saved.base is not None:
            common = dict(scale_input=saved.scale_input, lora=saved.lora, text=saved.text, **saved.base_settings)
            source = base or base_of(place, saved.base)
            restorer = hollow_restorer(source, adapter, saved.resolution, saved.timestep, **common)
        else:
            vae = planned(AutoencoderKL, read_config(place / "codec"), str(place / "codec"))
            unet, alpha_bar = hollow_unet(place / "denoiser", saved.text)
            require_files([place / "denoiser" / DENOISER], unet.state_dict())
            denoiser = Denoiser(unet, saved.timestep, alpha_bar, saved.scale_input, saved.text)
            if saved.lora is not None:
                denoiser.add_lora(**saved.lora)
            restorer = Restorer(Codec(vae), adapter, denoiser, saved.resolution)
    if saved.lora is not None and not (place / "denoiser" / LORA_WEIGHTS).is_file():
        raise InputError(f"{str(place / 'denoiser' / LORA_WEIGHTS)!r} is missing; give a folder that LAFR saved")
    return restorer.requires_grad_(False)


def require_files(files: Sequence[Path], wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError unless the files are there and their headers hold exactly the tensors of `wanted`."""
    for path in files:
        if not path.is_file():
            raise InputError(f"{str(path)!r} is missing; give a folder that LAFR saved")
    require_shapes(files, wanted)


class HollowLPIPS(PerceptualLPIPS):
    """The LPIPS term with a random network, which costs the same."""

    def __init__(self, trunk: str = "vgg"):
        torch.nn.Module.__init__(self)
        self.network = untrained_lpips(trunk)


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
        sizes.append(4 * sum(value.numel() for value in objective.trained_state().values()))
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
