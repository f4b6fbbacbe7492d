"""What `lafr check` and `lafr train` look for before a run.

Here the configuration is read for `lafr.training.preflight`, which knows no keys; a few steps are timed, to say how
long a run would take here.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lafr.commands.doors import as_hydra, as_started
from lafr.errors import InputError
from lafr.storage import shipped

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lafr.training.preflight import Finding

# terms that build a network by its trunk -> the prefix of its name in `lafr.networks.NEEDS`, and the trunk by default
TRUNKS = {"PerceptualLPIPS": ("lpips", "vgg"), "PerceptualSTLPIPS": ("st_lpips", "alex")}
# a model of fewer values trains on any machine at hand; counting would take as long as its first steps
WORTH_COUNTING = 100_000_000
# networks whose weights a transformers repository or folder holds -> the one by default
HUB_MODELS = {"clip": "openai/clip-vit-base-patch32", "vision_transformer": ""}


def require_everything(cfg: "DictConfig", show: bool) -> None:
    """Raise InputError when something is missing that a training run needs; `show` prints the whole table first."""
    from lafr.training.preflight import missing, report

    findings = training_findings(cfg)
    lacking = missing(findings)
    for finding in findings:
        if show and finding.there and finding.error:
            print(f"warning: {as_started(finding.error.spelled(as_hydra))}", file=sys.stderr, flush=True)
    if len(lacking) == 1 and lacking[0].error:
        raise lacking[0].error
    if lacking:
        if show:
            print(as_started(report(findings, as_hydra)), file=sys.stderr, flush=True)
        names = ", ".join(finding.name for finding in lacking)
        raise InputError(f"{len(lacking)} of {len(findings)} things are missing: {names}", remedy="see the table above")


def training_findings(cfg: "DictConfig", counting: bool | None = None) -> "list[Finding]":
    """Return what a training run needs.

    Args:
        cfg: composed configuration.
        counting: whether its memory is counted, which takes seconds; None where it may be short: on an accelerator,
            and for a large model.
    """
    from omegaconf import OmegaConf

    from lafr.training import preflight

    settings = OmegaConf.to_container(cfg, resolve=True)
    trainer, build = settings["trainer"], settings["model"]["build"]
    findings = [preflight.package(tracker, "trackers") for tracker in trainer["trackers"]]
    if trainer["optimizer"] == "adamw8bit":
        findings.append(preflight.package("bitsandbytes", "optimizer"))
    findings += networks_of(settings)
    findings += model_findings(build, asks_for_text(settings))
    found, faces = data_finding(cfg)
    stages, objectives = stage_findings(settings)
    findings += [found, *stages]
    resolution = settings["model"]["resolution"]
    needed = preflight.checkpoint_bytes([o for o, _ in objectives.values()], trainer["keep_checkpoints"])
    parts = "checkpoints"
    if trainer["cache_latents"] and faces is not None and objectives:
        needed += max(preflight.latent_bytes(len(faces), o, resolution) for o, _ in objectives.values())
        parts = "checkpoints and latents"
    findings.append(preflight.disk(settings["run_dir"], needed, parts))
    if counting is None:  # what is missing changes what is counted, and is to be told first
        counting = not preflight.missing(findings) and may_be_short(objectives.values())
    if objectives and counting:
        findings.append(memory_finding(settings, objectives))
    return findings


def model_findings(build: Mapping, text: bool = False) -> "list[Finding]":
    """Look for the model that the stages start from: a base model, or a saved restorer and its base.

    `text`: a base model must give the empty prompt's embedding, as terms of the loss need it.
    """
    from lafr.models.restorer import base_of, model_folder
    from lafr.models.saved import Saved
    from lafr.training import preflight

    kind = ".".join(build["_target_"].rsplit(".", 2)[-2:])
    how = {key: build[key] for key in ("remedy", "offline", "variant", "expect") if key in build}
    if kind == "Restorer.from_base":
        return [preflight.base_model(build["folder"], text=text or build.get("text", "none") != "none", **how)[0]]
    if kind == "Base.from_pretrained":
        return [preflight.base_model(build["sources"], text=build.get("text", False), **how)[0]]
    if kind != "Restorer.from_pretrained":
        return []
    place = model_folder(build.get("folder", "mini"))
    try:
        saved = Saved.read(place)
        source = None if saved.base is None else build.get("base") or base_of(place, saved.base)
    except InputError as error:
        return [preflight.refused("model", error)]
    found = [preflight.Finding("model", True, str(build.get("folder", "mini")))]
    if source is not None:
        own = {key: saved.base_settings.get(key) for key in ("variant", "expect")}
        how = {"offline": build.get("offline", False), **own}
        found.append(preflight.base_model(source, text=saved.text != "none", **how)[0])
    return found


def may_be_short(stages: Iterable[tuple[Any, int]]) -> bool:
    """Return whether the memory of stages, objectives with faces at a time, is worth counting before a run."""
    import torch

    # none for the parts of a miniature, whose objectives are built with their networks
    largest = max((sum(value.numel() for value in objective.parameters()) for objective, _ in stages), default=0)
    return torch.cuda.is_available() or largest > WORTH_COUNTING


def memory_finding(settings: Mapping, objectives: "dict[str, tuple[Any, int]]") -> "Finding":
    """Count the memory of every stage; where the device has less, find settings that fit."""
    from lafr.training import preflight

    available = free_memory()
    return preflight.memory(
        peaks(settings, objectives), available, lambda stage: lighter(settings, stage, available or 0.0)
    )


def peaks(settings: Mapping, objectives: "Mapping[str, tuple[Any, int]]") -> dict[str, int]:
    """Return the bytes that a step of each stage holds at its peak."""
    from lafr.commands.train import precision_here
    from lafr.training.preflight import peak_bytes

    trainer, resolution = settings["trainer"], settings["model"]["resolution"]
    how = precision_here(trainer["mixed_precision"], quiet=True), trainer["gradient_checkpointing"]
    return {name: peak_bytes(objective, faces, resolution, *how) for name, (objective, faces) in objectives.items()}


def lighter(settings: Mapping, stage: str, available: float) -> str:
    """Return, in words, the preset under which a stage fits the device, or one face at a time; else that none does."""
    from lafr.errors import setting
    from lafr.training.preflight import TIGHT, gigabytes, missing

    alone = {"accumulation": settings["stage"][stage]["batch_size"] // processes(), "gradient_checkpointing": True}
    # the lightest last; in words, and what it changes
    ways = [(setting("trainer", name), preset) for name, preset in presets().items()]
    ways.append((" ".join(setting(key, value) for key, value in alone.items()), alone))
    least = ""
    for words, changes in ways:
        changed = {**settings, "stages": [stage], "trainer": {**settings["trainer"], **changes}}
        findings, objectives = stage_findings(changed)
        if missing(findings):
            continue
        for peak in peaks(changed, objectives).values():
            if peak < TIGHT * available:
                return f"{words} needs {gigabytes(peak)}"
            least = f"even {words} needs {gigabytes(peak)}"
    return least


def presets() -> dict[str, dict]:
    """Return the settings of each trainer that is made for a size of memory, the largest first."""
    from omegaconf import OmegaConf

    files = (shipped("configs") / "trainer").glob("gpu*.yaml")
    found = {}
    for path in sorted(files, key=lambda path: -int(path.stem.removeprefix("gpu"))):
        found[path.stem] = {key: value for key, value in OmegaConf.load(path).items() if key != "defaults"}
    return found


def networks_of(settings: Mapping) -> "list[Finding]":
    """Return the packages and files of the networks that the model and the stages name."""
    from lafr.training import preflight

    used: dict[str, list[str]] = {}
    hubs: dict[tuple[str, str], list[str]] = {}
    parts = {"model": settings["model"]} | {name: settings["stage"][name] for name in settings["stages"]}
    for part, node in parts.items():
        for name, own in named_networks(node):
            used.setdefault(name, []).append(part)
            if name in HUB_MODELS:
                hubs.setdefault((name, own.get("folder", HUB_MODELS[name])), []).append(part)
    models = [preflight.hub_weights(name, folder, ", ".join(users)) for (name, folder), users in hubs.items()]
    return preflight.networks(used) + models


def asks_for_text(settings: Mapping) -> bool:
    """Return whether a term of a stage's loss builds the base that is trained, with the empty prompt's embedding."""
    own = settings["model"]["build"].get("folder")
    return any(
        node["_target_"].endswith("Base.from_pretrained") and node.get("text", False) and node["sources"] == own
        for name in settings["stages"]
        for node in definitions(settings["stage"][name])
    )


def definitions(node: Any) -> Iterator[Mapping]:
    """Yield every part of a configuration that names a class or function to build it with."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node
        node = list(node.values())
    if isinstance(node, list):
        for value in node:
            yield from definitions(value)


def named_networks(node: Any) -> Iterator[tuple[str, Mapping]]:
    """Yield the name of each network that a configuration builds, with its settings."""
    for own in definitions(node):
        kind = str(own["_target_"]).rpartition(".")[2]
        if own["_target_"] == "lafr.networks.load":
            yield own["name"], own
        elif kind == "FeatureDiscriminator":
            yield "vision_transformer", own
        elif kind in TRUNKS:
            prefix, trunk = TRUNKS[kind]
            yield f"{prefix}_{own.get('trunk', trunk)}", own


def data_finding(cfg: "DictConfig") -> "tuple[Finding, Any]":
    """Look for the training faces."""
    from lafr.training.preflight import Finding, refused

    try:
        faces, held_out = built(cfg.data)
    except InputError as error:
        return refused("faces", error, fetch=prepare_line(error)), None
    return Finding("faces", True, f"{len(faces)} to train on, {len(held_out)} to validate on"), faces


def prepare_line(error: InputError) -> str:
    """Return the command that prepares what an error misses, empty where it names none."""
    command = re.search(r"python scripts/prepare_data\.py( \w+=\w+)+", str(error))
    return command[0] if command else ""


def stage_findings(settings: Mapping) -> "tuple[list[Finding], dict[str, tuple[Any, int]]]":
    """Build every stage on meta tensors; returns the findings, and of each stage its objective and faces at a time."""
    from lafr.training import preflight

    build, trainer = settings["model"]["build"], settings["trainer"]
    findings, objectives = [], {}
    for name in settings["stages"]:
        own = settings["stage"][name]
        found, objective = preflight.stage(
            name,
            # on a model of its own: a stage freezes what the one before has trained
            partial(hollow_objective, own["objective"], build),
            own["batch_size"],
            trainer["accumulation"],
            processes(),
            trainer["decode_crop"],
        )
        findings.append(found)
        if objective is not None:
            objectives[name] = objective, max(1, own["batch_size"] // (trainer["accumulation"] * processes()))
    return findings, objectives


def hollow_objective(objective: Mapping, model: Mapping) -> Any:
    """Return a stage's objective on a model, both of their definitions, without values."""
    from lafr.training.hollow import hollowed

    return built(hollowed(objective))(built(hollowed(model)))


def built(definition: Any) -> Any:
    """Return what a definition builds; an InputError comes out as such, not wrapped by Hydra."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(definition, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError | RuntimeError | OSError):
            raise error.__cause__ from None
        raise InputError(" ".join(str(error).split())) from None


def processes() -> int:
    """Return the number of processes that Accelerate's launcher started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def free_memory() -> float | None:
    """Return the free bytes of the device that training takes; None where they are unknown."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info(int(os.environ.get("LOCAL_RANK", "0")))[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    fields = {line.split(":")[0]: line.split()[1] for line in lines}
    # the processes of one machine share its memory
    return 1024 * float(fields["MemAvailable"]) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def training_time(cfg: "DictConfig", steps: int = 2) -> list[str]:
    """Return a line for each stage: its steps, seconds of one by timing `steps` micro-batches here, and hours."""
    from torch.utils.data import default_collate

    from lafr.commands.train import new_accelerator
    from lafr.data.stream import PairStream
    from lafr.training.counting import optimiser_step

    faces, _ = built(cfg.data)
    degradation, model, trainer = built(cfg.degradation), built(cfg.model.build), cfg.trainer
    accelerator = new_accelerator(cfg, tracking=False)
    lines, total = [], 0.0
    for name in cfg.stages:
        settings = built(cfg.stage[name])
        pairs = settings.pop("stream", PairStream)(faces, degradation, cfg.seed)
        objective = settings.pop("objective")(model)
        if not any(p.requires_grad for p in objective.parameters()):
            continue
        objective.to(accelerator.device).train()
        if trainer.gradient_checkpointing:
            objective.enable_gradient_checkpointing()
        share = max(1, settings["batch_size"] // trainer.accumulation)
        batch = default_collate([pairs[n] for n in range(share)])
        batch = {key: value.to(accelerator.device) for key, value in batch.items()}
        step, _ = optimiser_step(objective, batch, accelerator.mixed_precision)
        seconds = trainer.accumulation * timed(step, steps, accelerator.device)
        total += seconds * settings["max_steps"]
        whole = duration(seconds * settings["max_steps"])
        lines.append(f"{name}: {settings['max_steps']:,} steps x {seconds:.2f} s = {whole}")
    rest = "without loading faces, validation and checkpoints"
    return [*lines, f"in all {duration(total)} on one {accelerator.device.type} device, {rest}"]


def timed(work: Callable[[], object], repeats: int, device: Any) -> float:
    """Return the mean seconds of `work` over `repeats`, after one run that is not timed."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    work()
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    wait()
    return (time.perf_counter() - started) / repeats


def duration(seconds: float) -> str:
    """Return seconds in words: 40 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def benchmark_findings(cfg: "DictConfig") -> "tuple[list[Finding], dict[str, Any]]":
    """Return what an evaluation needs, and the metrics that could be built."""
    from lafr.commands.evaluate import plan_from_config
    from lafr.metrics.registry import describe
    from lafr.models.saved import INDEX
    from lafr.training import preflight

    plan = plan_from_config(cfg)
    metrics: dict[str, Any] = {}
    used: dict[str, list[str]] = {}
    findings = []
    for name, build in plan.metrics.items():
        try:
            metrics[name] = build()
        except InputError as error:
            for network in describe(name).networks:
                used.setdefault(network, []).append(name)
            findings.append(replace(preflight.refused(f"metric {name}", error), needed=False))
        else:
            findings.append(preflight.Finding(f"metric {name}", True, "can be measured"))
    # the run leaves out what it cannot measure
    findings += [replace(found, needed=False) for found in preflight.networks(used) if not found.there]
    try:
        count = len(plan.build_benchmark(plan.side or 128))
        findings.append(preflight.Finding("images", True, f"{count} in {plan.benchmark}"))
    except InputError as error:
        findings.append(preflight.refused("images", error, fetch=prepare_line(error)))
    if plan.needs_model:
        there = plan.model.partition("/")[0] == "mini" or (Path(plan.model) / INDEX).is_file()
        where = plan.model if there else f"there is no model in {plan.model!r}; {plan.model_remedy}"
        findings.append(preflight.Finding("model", there, where))
    return findings, metrics


def evaluation_time(cfg: "DictConfig", metrics: Mapping[str, Any]) -> list[str]:
    """Return lines: seconds an image to restore and by each metric, timed on one batch, and hours of the whole set."""
    import torch

    from lafr.commands.devices import choose_device
    from lafr.commands.evaluate import plan_from_config
    from lafr.metrics.registry import is_set_metric
    from lafr.models.restorer import Restorer

    plan, seconds = plan_from_config(cfg), {}
    restorer, device = Restorer.from_pretrained(plan.model, decoder=plan.decoder), choose_device(plan.device)
    restorer.to(device)
    pairs = plan.build_benchmark(plan.side or restorer.resolution)
    chosen = [pairs[i] for i in range(min(plan.batch_size, len(pairs)))]
    lq = torch.stack([pair.lq for pair in chosen]).to(device)
    with torch.no_grad():
        seconds["restoring"] = timed(lambda: restorer(lq), 1, device) / len(lq)
        if all(pair.hq is not None for pair in chosen):
            hq = torch.stack([pair.hq for pair in chosen]).to(device)
            for name, metric in metrics.items():
                if not is_set_metric(metric):
                    seconds[name] = timed(partial(metric, lq, hq), 1, device) / len(lq)
    lines = [f"{name}: {value:.3f} s an image" for name, value in seconds.items()]
    whole = duration(sum(seconds.values()) * len(pairs))
    return [*lines, f"in all {whole} for {len(pairs)} images of one method on {device}, without metrics of whole sets"]
