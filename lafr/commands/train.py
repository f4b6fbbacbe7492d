"""Train: `lafr train +experiment=NAME`. Composes the configuration, builds the parts, calls the loop."""

import importlib.util
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from lafr.commands.devices import share_cores
from lafr.commands.launch import end_with_launcher, run
from lafr.commands.preflight import require_everything
from lafr.commands.processes import require_shared
from lafr.errors import InputError
from lafr.training.settings import require_settings

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from lafr.data.degradation.operators import Degrade
    from lafr.data.faces.sources import FaceSet
    from lafr.losses.kept import Kept
    from lafr.models.codec import Codec
    from lafr.models.restorer import Restorer
    from lafr.training.stopping import StopSignals

LOOP = (
    "optimizer",
    "gradient_checkpointing",
    "decode_crop",
    "num_workers",
    "log_every",
    "log_pairs",
    "validate_every",
    "checkpoint_every",
    "keep_checkpoints",
)


def main(cfg: DictConfig) -> None:
    """Run the experiment's stages in order; a finished stage is loaded, a started one resumed."""
    require_known(cfg)
    end_with_launcher()
    from lafr.storage import locked, remove_temporaries
    from lafr.training.stopping import StopSignals

    if os.environ.get("RANK", "0") != "0":
        with StopSignals() as stop:
            train_stages(cfg, stop)
        return
    run_dir = Path(cfg.run_dir)
    with locked(run_dir / ".lock"), StopSignals() as stop:
        remove_temporaries(run_dir)
        train_stages(cfg, stop)


def train_stages(cfg: DictConfig, stop: "StopSignals") -> None:
    """Build the parts of the experiment, run its stages and save the model."""
    from accelerate.utils import set_seed
    from hydra.utils import instantiate

    from lafr.data.faces.training_set import training_set
    from lafr.provenance import write_training_set
    from lafr.storage import atomic_folder
    from lafr.training.record import machine_of, pointed_at, remember
    from lafr.training.state import from_main
    from lafr.training.trackers import begin, complete, where_to_look

    if cfg.preflight:
        require_everything(cfg, show=os.environ.get("RANK", "0") == "0")
    faces, held_out = instantiate(cfg.data, _convert_="all")
    degradation = instantiate(cfg.degradation, _convert_="all")
    if cfg.trainer.cache_latents and getattr(degradation, "gray_target", False):
        raise InputError("cache_latents", True, "false where a recipe turns some HQ faces gray", "or another recipe")
    share_cores()
    accelerator = new_accelerator(cfg)
    caches = {"latent_cache": cfg.trainer.latent_cache} if cfg.trainer.cache_latents else {}
    require_shared(accelerator, run_dir=cfg.run_dir, **caches)
    set_seed(cfg.seed)  # the only use of global randomness: initial weights of the parts that are built here
    if accelerator.is_main_process:
        print(f"loading the model of {cfg.run_name} ...", file=sys.stderr, flush=True)
    model = instantiate(cfg.model.build, _convert_="all")
    run_dir, machine = Path(cfg.run_dir), machine_of(accelerator.num_processes, accelerator.device.type)
    said = from_main(lambda: remember(run_dir, resolved(cfg), pointed_at(model, faces, held_out), machine), accelerator)
    if said and accelerator.is_main_process:
        print(f"changed since this run began: {'; '.join(said)}", file=sys.stderr, flush=True)
    if accelerator.is_main_process:
        write_training_set(trained_on := training_set(faces, held_out), run_dir)
    if cfg.trainer.trackers:
        accelerator.init_trackers(cfg.trainer.tracking.project)
        begin(accelerator, resolved(cfg))
    planned = [cfg.stage[name].max_steps for name in cfg.stages]  # not those trained: the same after every resumption
    before = {name: sum(planned[:place]) for place, name in enumerate(cfg.stages)}
    complete(accelerator, run_dir, before)
    kept = memories(cfg, len(faces), degradation)
    for name in cfg.stages:
        run_stage(name, cfg, model, accelerator, faces, held_out, degradation, before[name], stop, kept)
    if accelerator.is_main_process:
        saved = run_dir / "model"

        def save(folder: Path) -> None:
            model.save_pretrained(folder)
            write_training_set(trained_on, folder)

        atomic_folder(saved, save)
        print("\n".join([f"saved {saved}", *where_to_look(accelerator, run_dir)]))
    accelerator.end_training()


def require_known(cfg: DictConfig) -> None:
    """Raise InputError for a stage or a tracker that does not exist, before torch is imported."""
    unknown = [name for name in cfg.stages if name not in cfg.stage]
    if unknown:
        raise InputError("stages", list(cfg.stages), f"some of {', '.join(cfg.stage)}")
    for numbers in (cfg.trainer, *(cfg.stage[name] for name in cfg.stages)):
        require_settings(numbers)
    for tracker in cfg.trainer.trackers:  # Accelerate would leave an absent one out without a word
        if importlib.util.find_spec(tracker) is None:
            raise InputError(
                "trackers", list(cfg.trainer.trackers), "packages installed here", f"pip install {tracker}"
            )


def new_accelerator(cfg: DictConfig, tracking: bool = True) -> "Accelerator":
    """Return the accelerator of the run; without `tracking` it opens no tracker."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    from lafr.training.trackers import new_trackers

    names, run = list(cfg.trainer.trackers) if tracking else [], Path(cfg.run_dir)
    if os.environ.get("RANK", "0") != "0":
        names = []  # the main process alone tracks
    trackers = new_trackers(names, run, cfg.run_name, resolved(cfg), **cfg.trainer.tracking) if names else []
    return Accelerator(
        mixed_precision=precision_here(cfg.trainer.mixed_precision),
        gradient_accumulation_steps=cfg.trainer.accumulation,
        log_with=trackers or None,
        project_dir=cfg.run_dir,
        # the codebook's moving averages are buffers that the loop itself keeps equal in all processes
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # one process validates and fills the cache of latents, for hours with 70,000 faces, while the others wait
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
        ],
    )


def precision_here(name: str, quiet: bool = False) -> str:
    """Return the precision to train in: "no" for bf16 on a processor without its instructions, and a line says so.

    There a step in bf16 is emulated and takes about fifty times as long. `quiet` prints no line.
    """
    import torch

    from lafr.models.fast import choose_dtype

    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not (
        torch.cuda.is_available() or torch.backends.mps.is_available()
    )
    if name == "bf16" and on_cpu and choose_dtype("auto", torch.device("cpu")) != torch.bfloat16:
        if not quiet and os.environ.get("RANK", "0") == "0":
            print(f"this processor has no bfloat16 instructions: training in float32, not {name}", file=sys.stderr)
        return "no"
    return name


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings that the run depends on: its own stages, without the groups that they have resolved."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    settings["stage"] = {name: settings["stage"][name] for name in cfg.stages}
    for choice in ("loss", "adapter", "preflight"):
        del settings[choice]
    return settings


def run_stage(
    name: str,
    cfg: DictConfig,
    model: "Restorer",
    accelerator: "Accelerator",
    faces: "FaceSet",
    held_out: "FaceSet",
    degradation: "Degrade",
    steps_before: int = 0,
    stop: "StopSignals | None" = None,
    kept: "tuple[Kept | None, Kept | None]" = (None, None),
) -> None:
    """Train one stage of the model in `run_dir/NAME`, or load it where it is finished.

    `steps_before` are tracked; `kept` are the memories of faces and of LQ images.
    """
    from hydra.utils import instantiate

    from lafr.data.stream import PairStream
    from lafr.training.loop import train
    from lafr.training.validation import Validation

    trainer, folder = cfg.trainer, Path(cfg.run_dir) / name
    settings = instantiate(cfg.stage[name], _convert_="all")
    pairs = settings.pop("stream", PairStream)(faces, degradation, cfg.seed)
    objective = settings.pop("objective")(model)
    if not any(p.requires_grad for p in objective.parameters()):
        accelerator.print(f"{name}: this model has nothing to train in this stage")
        return
    objective.require_ready()
    objective.to(accelerator.device)
    objective.kept, objective.kept_lq = kept
    pairs.identified = objective.kept is not None
    if trainer.cache_latents and hasattr(objective, "codec") and not (folder / "final").is_dir():
        pairs.latents = latents_of(faces, objective.codec, accelerator, trainer.latent_cache)
    share = settings["batch_size"] // (trainer.accumulation * accelerator.num_processes)  # faces at a time in a step
    validate = Validation(
        pairs.held_out(held_out), folder / "validation", accelerator.device, trainer.validation_images, max(1, share)
    )
    loop = {key: trainer[key] for key in LOOP} | {"steps_before": steps_before, "stop": stop}
    summary = train(objective, pairs, accelerator, folder, validate, name=name, **settings, **loop)
    accelerator.free_memory()
    accelerator.print(
        f"{name}: {summary['steps']} steps, {summary['trained_parameters']:,} parameters, {summary['seconds']:.0f} s"
    )


def memories(cfg: DictConfig, faces: int, degradation: "Degrade") -> "tuple[Kept | None, Kept | None]":
    """Return the memories of what is computed of ground-truth faces and of LQ images: 9/10 and 1/10 of the budget.

    None where nothing is to be kept: without a budget, where a recipe turns some HQ faces gray, and of LQ images where
    no second stage sees the same pairs.
    """
    from lafr.losses.kept import Kept

    budget = cfg.trainer.feature_cache_gb
    if not budget or getattr(degradation, "gray_target", False):
        return None, None
    # every stage starts at pair 0: of two, the shorter one's pairs come twice; the codebook's has no LQ images
    seen = sorted(cfg.stage[name].max_steps * cfg.stage[name].batch_size for name in cfg.stages if name != "codebook")
    pairs = Kept(0.1 * budget, seen[-2]) if len(seen) > 1 else None
    return Kept(0.9 * budget, 2 * faces), pairs


def latents_of(faces: "FaceSet", codec: "Codec", accelerator: "Accelerator", folder: str) -> "Tensor":
    """Return the faces' latents from the cache, filled by the main process first, in the precision of a step."""
    from lafr.data.latents import cached_latents

    def encode(images: "Tensor") -> "Tensor":
        with accelerator.autocast():
            return codec.encode(images.to(accelerator.device))

    precision = accelerator.mixed_precision.replace("no", "fp32")
    with accelerator.main_process_first():
        return cached_latents(
            faces, encode, folder, f"{codec.fingerprint()}-{precision}", progress=accelerator.is_main_process
        )


def command() -> None:
    """Run the command line."""
    run(main, "train")


if __name__ == "__main__":
    command()
