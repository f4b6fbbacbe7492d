"""Stand-ins of pretrained parts: their shapes without their files, to count what they cost and to find mistakes.

Each takes the arguments of what it stands in for. It is built on the device around it: on the meta device nothing has
values, on another they are random.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lafr.errors import InputError
from lafr.losses.appearance import PerceptualLPIPS
from lafr.losses.discriminators import IMAGENET_MEAN, IMAGENET_STD, FeatureDiscriminator
from lafr.models.adapter import Adapter, build_adapter
from lafr.models.base.model import Base, read_scheduler
from lafr.models.base.sources import CONFIGS, NotThere, find
from lafr.models.base.supported import KNOWN
from lafr.models.codec import Codec
from lafr.models.denoiser import DENOISER, Denoiser, hollow_unet
from lafr.models.loading import planned, read_config, require_file, require_shapes
from lafr.models.lora import WEIGHTS as LORA_WEIGHTS
from lafr.models.restorer import ADAPTER_WEIGHTS, Restorer, base_of, model_folder
from lafr.models.saved import Saved
from lafr.networks.perceptual import untrained_lpips

# what reads files -> what is as large and does not
HOLLOW = {
    "lafr.networks.load": "lafr.networks.hollow",
    "lafr.losses.appearance.PerceptualLPIPS": "lafr.training.hollow.HollowLPIPS",
    "lafr.losses.discriminators.FeatureDiscriminator": "lafr.training.hollow.HollowFeatureDiscriminator",
    "lafr.models.base.model.Base.from_pretrained": "lafr.training.hollow.hollow_base",
    "lafr.models.restorer.Restorer.from_base": "lafr.training.hollow.hollow_restorer",
    "lafr.models.restorer.Restorer.from_pretrained": "lafr.training.hollow.hollow_saved",
}
TOKENS = 77  # of Stable Diffusion's text encoders
DINOV2 = {  # repository -> what its configuration says
    f"facebook/dinov2-{name}": dict(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64)
    for name, width, layers in (("small", 384, 12), ("base", 768, 12), ("large", 1024, 24))
}


def hollowed(node: Any) -> Any:
    """Return a configuration whose pretrained parts are stand-ins."""
    if isinstance(node, Mapping):
        changed = {key: hollowed(value) for key, value in node.items()}
        if changed.get("_target_") in HOLLOW:
            changed["_target_"] = HOLLOW[changed["_target_"]]
        return changed
    return [hollowed(value) for value in node] if isinstance(node, list) else node


class HollowLPIPS(PerceptualLPIPS):
    """The LPIPS term without weights."""

    def __init__(self, trunk: str = "vgg"):
        nn.Module.__init__(self)
        self.network = untrained_lpips(trunk)


class HollowFeatureDiscriminator(FeatureDiscriminator):
    """Heads on a vision transformer without weights: of the folder that is there, else of a known repository."""

    @staticmethod
    def vision(folder: str) -> tuple[nn.Module, tuple]:
        """Return the transformer, and statistics of pixels."""
        from transformers import AutoConfig, AutoModel, Dinov2Config

        if Path(folder).is_dir():
            config = AutoConfig.from_pretrained(folder)
            config = getattr(config, "vision_config", config)
        elif folder in DINOV2:
            config = Dinov2Config(patch_size=14, image_size=518, **DINOV2[folder])
        else:
            raise InputError(f"the shapes of {folder!r} are unknown until it is there")
        model = AutoModel.from_config(config)
        return model.requires_grad_(False).eval(), (IMAGENET_MEAN, IMAGENET_STD)


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
        return Base(vae, unet, scheduler, torch.empty(1, TOKENS, unet.config.cross_attention_dim))


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
        return Restorer.on_base(base, adapter, resolution, timestep, scale_input, lora, text)


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
            require_fits(place / ADAPTER_WEIGHTS, own)
        if saved.base is not None:
            common = dict(scale_input=saved.scale_input, lora=saved.lora, text=saved.text, **saved.base_settings)
            source = base or base_of(place, saved.base)
            restorer = hollow_restorer(source, adapter, saved.resolution, saved.timestep, **common)
        else:
            vae = planned(AutoencoderKL, read_config(place / "codec"), str(place / "codec"))
            unet, alpha_bar = hollow_unet(place / "denoiser", saved.text)
            require_fits(place / "denoiser" / DENOISER, unet.state_dict())
            denoiser = Denoiser(unet, saved.timestep, alpha_bar, saved.scale_input, saved.text)
            if saved.lora is not None:
                denoiser.add_lora(**saved.lora)
            restorer = Restorer(Codec(vae), adapter, denoiser, saved.resolution)
    if saved.lora is not None:
        require_file(place / "denoiser" / LORA_WEIGHTS)
    return restorer.requires_grad_(False)


def require_fits(path: Path, wanted: Mapping[str, torch.Tensor]) -> None:
    """Raise InputError unless a file is there and its header holds exactly the tensors of `wanted`."""
    require_file(path)
    require_shapes([path], wanted)
