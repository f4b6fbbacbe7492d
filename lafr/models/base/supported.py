"""The base models that LAFR knows, what their configurations must say, and how other models are recognised."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lafr.errors import InputError, setting

VAE = dict(
    in_channels=3, out_channels=3, latent_channels=4, block_out_channels=[128, 256, 512, 512], layers_per_block=2,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=32,
    scaling_factor=0.18215,
)  # fmt: skip
UNET: dict[str, Any] = dict(
    in_channels=4, out_channels=4, block_out_channels=[320, 640, 1280, 1280], layers_per_block=2, norm_num_groups=32,
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
)  # fmt: skip
SCHEDULER = dict(
    num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", trained_betas=None,
    prediction_type="epsilon", rescale_betas_zero_snr=False,
)  # fmt: skip
# SD 2.1 has 64 channels a head (so 5 to 20 heads) and OpenCLIP's 1024; SD 1.5 has 8 heads and CLIP's 768
SD21 = UNET | dict(cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20], use_linear_projection=True)
SD15 = UNET | dict(cross_attention_dim=768, attention_head_dim=8, use_linear_projection=False)


@dataclass(frozen=True)
class Known:
    """A base model: its name in words, and what its three configurations must say, in diffusers' terms."""

    title: str
    vae: dict
    unet: dict
    scheduler: dict


# SD-Turbo was distilled from 2.1-base: of the same shapes and noise schedule, so that only a sha256 tells them apart.
KNOWN = {
    "sd21_base": Known("Stable Diffusion 2.1-base", VAE, SD21, SCHEDULER),
    "sd_turbo": Known("SD-Turbo", VAE, SD21, SCHEDULER),
    "sd15": Known("Stable Diffusion 1.5", VAE, SD15, SCHEDULER),
}

INPUTS = {
    5: "a depth-to-image model", 7: "an upscaler", 8: "an image-editing model such as InstructPix2Pix",
    9: "an inpainting model",
}  # fmt: skip


def known(name: str) -> Known:
    """Return the entry of `name`; raises InputError with the names there are."""
    if name not in KNOWN:
        raise InputError("expect", name, f"one of {', '.join(KNOWN)}, the base models that LAFR knows")
    return KNOWN[name]


def differences(given: Mapping, wanted: Mapping) -> list[str]:
    """Return where `given` says otherwise than `wanted`; what it doesn't say can't differ."""

    def per_block(value: Any) -> list:  # 8 heads and [8, 8, 8, 8] heads are the same
        return list(value) if isinstance(value, list | tuple) else [value] * len(UNET["block_out_channels"])

    both = [(name, given[name], value) for name, value in wanted.items() if name in given]
    return [f"{name} {said}, not {value}" for name, said, value in both if per_block(said) != per_block(value)]


def unsuitable(unet: Mapping, scheduler: Mapping) -> str | None:
    """Return what a model is that no LAFR restorer can be built on, or None; by its diffusers configurations."""
    inputs, cross = unet["in_channels"], unet.get("cross_attention_dim")
    if inputs in INPUTS:
        return f"{INPUTS[inputs]} ({inputs} input channels)"
    # SDXL adds image size and crop to the time: the folded time could not hold them
    if unet.get("addition_embed_type") == "text_time":
        name = "the Stable Diffusion XL refiner" if cross == 1280 else "Stable Diffusion XL"
        return f"{name} (cross-attention {cross}, conditioned on sizes)"
    # a second condition besides the text: nothing here would supply it
    if unet.get("class_embed_type") or unet.get("num_class_embeds"):
        return "a model conditioned on classes or images, such as Stable unCLIP"
    if (kind := scheduler.get("prediction_type", "epsilon")) != "epsilon":
        name = "Stable Diffusion 2.x at 768 px" if (kind, cross) == ("v_prediction", 1024) else "another model"
        return f"{name}: it predicts {kind}, not epsilon"
    return None


def require_known(vae: Mapping, unet: Mapping, scheduler: Mapping, where: str, expect: str | None) -> None:
    """Raise InputError unless the model of these configurations, found at `where`, can be used and is the expected one.

    Without `expect` any model passes that a restorer can be built on.
    """
    wanted = known(expect) if expect else None
    name = wanted.title if wanted else "a base for LAFR"
    if other := unsuitable(unet, scheduler):
        raise InputError(f"{where!r} is {other}, not {name}; choose {setting('model', 'sd21_base')}")
    if wanted is None:
        return
    wrong = [
        f"{part} {difference}"
        for part, given, fields in (
            ("unet", unet, wanted.unet),
            ("vae", vae, wanted.vae),
            ("scheduler", scheduler, wanted.scheduler),
        )
        for difference in differences(given, fields)
    ]
    if not wrong:
        return
    fits = [key for key, entry in KNOWN.items() if not differences(unet, entry.unet)]
    if differences(unet, wanted.unet) and fits:
        found = KNOWN[fits[0]].title
        raise InputError(f"{where!r} is {found}, not {name} ({wrong[0]}); choose {setting('model', fits[0])}")
    raise InputError(f"{where!r} is not {name}: {'; '.join(wrong[:2])}; choose a folder or file that holds {name}")
