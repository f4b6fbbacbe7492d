"""What each shipped loss trains and holds in memory: a restoration step at full size, counted on fake tensors."""

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

from lafr.errors import need
from lafr.evaluation import markdown
from lafr.models.base.model import Base
from lafr.models.base.supported import KNOWN
from lafr.networks import NETWORKS
from lafr.training.counting import Numbers, count, optimiser_step, without_values
from lafr.training.objectives import RestorationObjective

ROOT = Path(__file__).resolve().parents[2]
SD21 = KNOWN["sd21_base"]
TOKENS = 77  # of its text encoder
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def losses(cfg: DictConfig) -> dict:
    """Return trained values of the model and of the terms, and peak memory under each preset, of each loss."""
    found = {}
    for name in tqdm(cfg.losses, desc="counting", unit="loss"):
        presets = {preset: counted(cfg.experiment, name, preset) for preset in cfg.presets}
        first = next(iter(presets.values()))
        found[name] = {
            "lora": first["lora"],
            "own": first["own"],
            "tera_operations": first["tera_operations"],
            "peak_gb": {preset: values["peak_gb"] for preset, values in presets.items()},
            "micro_batch": {preset: values["micro_batch"] for preset, values in presets.items()},
        }
    return {"experiment": cfg.experiment, "losses": found}


def counted(experiment: str, loss: str, preset: str) -> dict:
    """Count a restoration step of `experiment` with a loss, on the micro-batch of a trainer's preset."""
    config = composed(experiment, loss, preset)
    trainer, resolution = config.trainer, config.model.resolution
    faces = config.stage.restoration.batch_size // trainer.accumulation
    with torch.device("meta"):
        objective = built(config)
    if trainer.gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    values = trained_values(objective)

    def work() -> None:
        batch = {key: torch.empty(faces, 3, resolution, resolution) for key in ("lq", "hq")}
        optimiser_step(objective, batch | {"n": Numbers(range(faces))}, trainer.mixed_precision)[0]()

    step = count(without_values(objective), work)
    return {
        **values,
        "tera_operations": step.operations / faces / 1e12,
        "peak_gb": step.peak_bytes / 1e9,
        "micro_batch": faces,
    }


def composed(experiment: str, loss: str, *overrides: str) -> DictConfig:
    """Return an experiment's configuration with another loss and trainer's preset or other overrides."""
    GlobalHydra.instance().clear()  # the command's own configuration was composed from the same folder
    overrides = tuple(text if "=" in text else f"trainer={text}" for text in overrides)
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return compose("train", [f"+experiment={experiment}", f"loss={loss}", *overrides])


def built(config: DictConfig, base: Callable[[], Base] | None = None) -> RestorationObjective:
    """Return the restoration objective of a configuration, every pretrained part a stand-in (see `stand_ins`)."""
    with stand_ins(base or base_model):
        restorer = instantiate(config.model.build, _convert_="all")
        return RestorationObjective(restorer, instantiate(config.loss, _convert_="all")).train()


def trained_values(objective: RestorationObjective) -> dict[str, int]:
    """Return how many values the stage's optimiser trains ("lora"), and the terms by their own optimisers ("own")."""
    own = [p for term in objective.loss.learned().values() for p in term.trained_parameters()]
    lora = [p for p in objective.parameters() if p.requires_grad]
    return {"lora": sum(p.numel() for p in lora), "own": sum(p.numel() for p in own)}


def base_model() -> Base:
    """Return Stable Diffusion 2.1-base without values; call it under `torch.device("meta")`."""
    null_embedding = torch.empty(1, TOKENS, SD21.unet["cross_attention_dim"])
    # the noise schedule has values: a term computes with them
    with torch.device("cpu"):
        scheduler = DDPMScheduler(**SD21.scheduler)
    return Base(AutoencoderKL(**VAE), UNet2DConditionModel(**SD21.unet), scheduler, null_embedding, "stand-in")


@contextmanager
def stand_ins(base: Callable[[], Base]) -> Iterator[None]:
    """Replace every pretrained network by one of its shape, and the base model by `base()`, while this lasts."""
    made: dict[str, nn.Module] = {}

    def load(name: str, **settings: str) -> nn.Module:
        if name not in made:
            made[name] = SPECIAL[name]() if name in SPECIAL else _class(NETWORKS[name])()
        return made[name].requires_grad_(False).eval()

    with ExitStack() as stack:
        stack.enter_context(patch("lafr.networks.load", load))
        stack.enter_context(patch("lafr.losses.appearance.lpips_network", lpips))
        stack.enter_context(patch("lafr.losses.discriminators.vision_transformer", dinov2))
        stack.enter_context(patch.object(Base, "from_pretrained", lambda *_, **__: base()))
        yield


def _class(path: str) -> Callable[..., nn.Module]:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def clip() -> nn.Module:
    """Return CLIP's image embedding, ViT-B/32."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return _class(NETWORKS["clip"])(CLIPVisionModelWithProjection(CLIPVisionConfig()))


def lpips(trunk: str) -> nn.Module:
    """Return LPIPS."""
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # it calls torchvision the old way
        return need("lpips", "lpips").LPIPS(pretrained=False, net=trunk, pnet_rand=True, verbose=False)


def dinov2(folder: str) -> tuple[nn.Module, tuple]:
    """Return DINOv2-small and statistics of pixels."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=518)
    return Dinov2Model(config).requires_grad_(False).eval(), ((0.5,) * 3, (0.5,) * 3)


SPECIAL = {"clip": clip}


def losses_table(record: dict) -> str:
    """Return the counts as a Markdown table."""
    presets = list(next(iter(record["losses"].values()))["peak_gb"])
    rows = []
    for name, found in record["losses"].items():
        memory = [f"{found['peak_gb'][preset]:.1f} ({found['micro_batch'][preset]})" for preset in presets]
        trained = [f"{found['lora']:,}", f"{found['own']:,}"]
        rows.append([f"`{name}`", *trained, f"{found['tera_operations']:.1f}", *memory])
    head = ["loss", "LoRA", "terms' own", "10¹² operations a face", *(f"{p}, GB (faces)" for p in presets)]
    return markdown.table(head, rows)
