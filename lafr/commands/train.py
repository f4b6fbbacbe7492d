"""Train: `python scripts/train.py +experiment=NAME`. Composes the configuration, builds the parts, calls the loop."""

import importlib.util
from pathlib import Path

from lafr.commands.launch import run


def main(cfg) -> None:
    """Run the experiment's stages in order; a finished stage is loaded, a started one resumed."""
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.utils import set_seed
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from lafr.data.stream import PairStream
    from lafr.errors import InputError
    from lafr.provenance import remember_config
    from lafr.storage import atomic_folder
    from lafr.training.loop import train
    from lafr.training.validation import Validation

    trainer = cfg.trainer
    unknown = [name for name in cfg.stages if name not in cfg.stage]
    if unknown:
        raise InputError(f"stages={unknown} are not known; known are {', '.join(cfg.stage)}")
    for tracker in trainer.trackers:  # Accelerate would leave an absent one out and say nothing
        if importlib.util.find_spec(tracker) is None:
            raise InputError(f"trainer.trackers names {tracker}, which is not installed: pip install {tracker}")
    faces, held_out = instantiate(cfg.data, _convert_="all")
    degradation = instantiate(cfg.degradation, _convert_="all")
    if trainer.cache_latents and getattr(degradation, "gray_target", False):
        raise InputError("trainer.cache_latents=true, but this recipe turns some HQ faces gray; choose one of the two")
    accelerator = Accelerator(
        mixed_precision=trainer.mixed_precision,
        gradient_accumulation_steps=trainer.accumulation,
        log_with=list(trainer.trackers) or None,
        project_dir=cfg.run_dir,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    set_seed(cfg.seed)  # the only global draw: the first weights of the parts that are built here
    model = instantiate(cfg.model.build, _convert_="all")
    run_dir = Path(cfg.run_dir)
    if accelerator.is_main_process:
        resolved = OmegaConf.to_container(cfg, resolve=True)
        resolved["stage"] = {name: resolved["stage"][name] for name in cfg.stages}
        for choice in ("loss", "adapter"):  # where they matter, they stand resolved in stage and model
            del resolved[choice]
        remember_config(resolved, run_dir)
    accelerator.wait_for_everyone()
    if trainer.trackers:
        accelerator.init_trackers("tracker")

    for name in cfg.stages:
        settings = instantiate(cfg.stage[name], _convert_="all")
        pairs = settings.pop("stream", PairStream)(faces, degradation, cfg.seed)
        build = settings.pop("objective")
        objective = build(model)
        if not any(p.requires_grad for p in objective.parameters()):
            accelerator.print(f"{name}: this model has nothing to train here")
            continue
        folder = run_dir / name
        objective.to(accelerator.device)
        if trainer.cache_latents and hasattr(objective, "codec") and not (folder / "final").is_dir():
            pairs.latents = latents_of(faces, objective.codec, accelerator, trainer.latent_cache)
        validate = Validation(
            pairs.held_out(held_out), folder / "validation", accelerator.device, trainer.validation_images
        )
        summary = train(
            objective,
            pairs,
            accelerator,
            folder,
            validate,
            name=name,
            **settings,
            optimizer=trainer.optimizer,
            gradient_checkpointing=trainer.gradient_checkpointing,
            decode_crop=trainer.decode_crop,
            num_workers=trainer.num_workers,
            log_every=trainer.log_every,
            log_pairs=trainer.log_pairs,
            validate_every=trainer.validate_every,
            checkpoint_every=trainer.checkpoint_every,
            keep_checkpoints=trainer.keep_checkpoints,
        )
        accelerator.free_memory()
        accelerator.print(f"{name}: {summary['steps']} steps, {summary['trained_parameters']:,} parameters, "
                          f"{summary['seconds']:.0f} s")  # fmt: skip
    if accelerator.is_main_process:
        atomic_folder(run_dir / "model", model.save_pretrained)
        print(f"saved {run_dir / 'model'}")
    accelerator.end_training()


def latents_of(faces, codec, accelerator, folder: str):
    """Return the faces' latents from the cache, filled by the main process first, in the precision of a step."""
    from lafr.data.latents import cached_latents

    def encode(images):
        with accelerator.autocast():
            return codec.encode(images.to(accelerator.device))

    key = f"{codec.fingerprint()}-{accelerator.mixed_precision.replace('no', 'fp32')}"
    with accelerator.main_process_first():
        return cached_latents(faces, encode, folder, key, progress=accelerator.is_main_process)


def command() -> None:
    """Run the command line."""
    run(main, "train")


if __name__ == "__main__":
    command()
