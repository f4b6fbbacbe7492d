"""The one-step denoiser: a Stable Diffusion UNet without text and time inputs, with a LoRA."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr.errors import InputError, reason_of
from lafr.models.folding import PromptAttention, fold_time, remove_time, replace_text, require_foldable
from lafr.models.loading import load_exactly, planned
from lafr.models.lora import (
    LORA_TARGETS,
    WEIGHTS,
    lora_state,
    merge_saved,
    plain_state,
    read_lora,
    require_rank,
    write_lora,
)
from lafr.models.schema import Range, read_small_json, require_fit
from lafr.storage import atomic_write, write_text

if TYPE_CHECKING:
    from peft import LoraConfig

DENOISER = "denoiser.safetensors"
# What `config.json` holds next to a pruned UNet; time, input scale, text and LoRA stand in the model's index.
CONFIG = {"alpha_bar": Annotated[float, Range(1e-5, 1)], "prompt_tokens": Annotated[int, Range(1, 4096)], "unet": dict}


class Denoiser(nn.Module):
    """One step from `z` at the fixed time t*: z0 = (z_t - sqrt(1 - abar) eps(z_t)) / sqrt(abar), no noise added.

    Args:
        unet: pruned of text and time; frozen here.
        timestep: t*, already folded into `unet`.
        alpha_bar: the noise schedule's cumulative product at t*.
        scale_input: feed sqrt(abar) z, which is what a clean latent is at t* (default), or raw z (OSEDiff).
        text: what became of cross-attention: "none", deleted (the paper's), or "empty_prompt", its prompt fixed.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        timestep: int,
        alpha_bar: float,
        scale_input: bool = True,
        text: str = "none",
    ):
        super().__init__()
        # only a LoRA, added later, is trained
        self.unet = unet.requires_grad_(False)
        self.timestep, self.alpha_bar, self.scale_input, self.text = timestep, alpha_bar, scale_input, text
        self.lora_config: LoraConfig | None = None

    @classmethod
    def from_base(
        cls,
        unet: UNet2DConditionModel,
        scheduler: DDPMScheduler,
        timestep: int,
        scale_input: bool = True,
        text: str = "none",
        null_embedding: Tensor | None = None,
    ) -> "Denoiser":
        """Prune a pretrained UNet, in place, for one step at `timestep` of `scheduler`'s noise schedule.

        `text="empty_prompt"` needs `null_embedding [1, L, D]`, the text encoder's output for the empty prompt.
        Raises InputError, and does not change the UNet, when time, schedule, UNet or text are not possible.
        """
        # forward computes z0 from eps; a v or x0 predictor would need another line
        kind, steps = scheduler.config.prediction_type, len(scheduler.alphas_cumprod)
        if kind != "epsilon":
            raise InputError(f"the base model predicts {kind!r}; LAFR needs one that predicts epsilon")
        if not 0 <= timestep < steps:
            raise InputError("timestep", timestep, f"from 0 to {steps - 1}, the base model's noise schedule")
        # all checks come before the first change, as what follows works in place
        require_foldable(unet, text, null_embedding)
        fold_time(unet, timestep)
        remove_time(unet)
        replace_text(unet, text, null_embedding)
        return cls(unet, timestep, float(scheduler.alphas_cumprod[timestep]), scale_input, text)

    def forward(self, z: Tensor) -> Tensor:
        """Map `z [B, C, h, w]` to `z_restored`, same shape; float32, whatever the precision of the UNet."""
        # sqrt(abar) and sqrt(1 - abar): the shares of latent and noise in z_t (DDPM, Eq. 4)
        signal, noise = self.alpha_bar**0.5, (1 - self.alpha_bar) ** 0.5
        # a clean latent, noised to t* with eps = 0, is sqrt(abar) z: what the UNet expects at t*
        z_t = z.float() * signal if self.scale_input else z.float()
        # the timestep is an argument of diffusers' forward; the pruned UNet has no layer that reads it
        eps = self.unet(z_t.to(self.unet.conv_in.weight.dtype), self.timestep, encoder_hidden_states=None).sample
        with torch.autocast(z.device.type, enabled=False):  # 1 / sqrt(abar) is up to 14.6: float32
            return (z_t - noise * eps.float()) / signal  # DDPM, Eq. 15

    def add_lora(self, rank: int = 4, alpha: float = 8, targets: Sequence[str] = LORA_TARGETS, seed: int = 0) -> None:
        """Add a LoRA (Hu et al., 2022) to the layers whose names end in `targets`; gaussian start drawn by `seed`."""
        from peft import LoraConfig  # a second

        self.lora_config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian"
        )
        # peft draws from the global generator; its state is restored afterwards
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(self.lora_config)

    def lora_parameters(self) -> list[nn.Parameter]:
        """Return the LoRA's weights: all that restoration trains."""
        return [p for name, p in self.unet.named_parameters() if ".lora_" in name]

    def merge_lora(self) -> None:
        """Add the LoRA to the weights it belongs to and remove its layers, in place; a no-op without one."""
        if self.lora_config:
            # W + alpha / rank * B A, in the precision of W
            self.unet.fuse_lora()
            self.unet.unload_lora()
            self.lora_config = None

    def save_lora(self, folder: str | Path) -> None:
        """Write the LoRA alone, as a file that diffusers' `load_lora_weights` reads."""
        if not self.lora_config:
            raise InputError("this denoiser has no LoRA, or it was merged; save all of it (save_pretrained)")
        write_lora(self.unet, self.lora_config, Path(folder))

    def load_lora(self, folder: str | Path, merged: bool = False, **settings: Any) -> None:
        """Add a LoRA of these settings (see `add_lora`) and load its weights, which `save_lora` wrote.

        With `merged` it is added to the weights it belongs to, as `merge_lora` would, and peft is not imported.
        Raises InputError unless names and shapes of the weights are exactly those of the settings.
        """
        folder = Path(folder)
        require_rank(folder, settings["rank"])  # before memory of this rank is taken
        if merged:
            return merge_saved(self.unet, folder, **settings)
        from peft import set_peft_model_state_dict

        try:
            self.add_lora(**settings)
        except ValueError as error:  # peft, of targets that no layer has
            raise InputError(f"the LoRA of {str(folder)!r} does not fit the UNet: {reason_of(error)}") from None
        set_peft_model_state_dict(self.unet, read_lora(folder, lora_state(self.unet)), adapter_name="default")

    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
        """Write the pruned UNet and, where there is one, its LoRA; with `merge`, the LoRA added to the weights.

        `merge` writes what `merge_lora` would leave, and changes nothing here.
        """
        folder = Path(folder)
        unet = {k: v for k, v in self.unet.config.items() if k != "_name_or_path"}  # a path of this machine
        # the length of the fixed prompt decides the shapes of its keys and values
        prompts = [layer.key.shape[2] for layer in self.unet.modules() if isinstance(layer, PromptAttention)]
        config = {"alpha_bar": self.alpha_bar, "prompt_tokens": prompts[0] if prompts else 1, "unet": unet}
        (folder / WEIGHTS).unlink(missing_ok=True)  # of an earlier LoRA
        # names without the LoRA wrapper: plain diffusers reads them
        state = plain_state(self.unet, merge)
        atomic_write(folder / DENOISER, lambda temporary: save_file(state, temporary))
        write_text(folder / "config.json", json.dumps(config, indent=1, default=list) + "\n")
        if self.lora_config and not merge:
            self.save_lora(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        timestep: int,
        scale_input: bool = True,
        text: str = "none",
        lora: Mapping[str, Any] | None = None,
        merged: bool = False,
    ) -> "Denoiser":
        """Load what `save_pretrained` wrote, bit for bit; the arguments are what it was made with.

        `merged`: see `load_lora`.

        Raises InputError unless names and shapes of the weights are exactly those of its configuration. (diffusers'
        own loading would silently give the pruned layers back, with random weights.)
        """
        folder = Path(folder)
        unet, alpha_bar = hollow_unet(folder, text)
        # assign: the file's tensors become the weights; a copy would need the memory twice
        unet.load_state_dict(load_exactly(folder / DENOISER, unet.state_dict()), assign=True)
        denoiser = cls(unet, timestep, alpha_bar, scale_input, text)
        if lora is not None:
            denoiser.load_lora(folder, merged, **lora)
        return denoiser


def hollow_unet(folder: Path, text: str) -> tuple[UNet2DConditionModel, float]:
    """Return the pruned UNet that `Denoiser.save_pretrained` wrote, on the meta device, without weights, and abar."""
    path = folder / "config.json"
    config = read_small_json(path)
    require_fit(config, CONFIG, repr(str(path)))
    unet = planned(UNet2DConditionModel, config["unet"], str(path), own=True)
    try:
        require_foldable(unet, "none", None)
    except InputError as error:
        raise InputError(f"{str(path)!r}: {error.args[0]}") from None
    # pruned on the meta device: the deleted layers are never allocated
    with torch.device("meta"):
        remove_time(unet)
        replace_text(unet, text, torch.empty(1, config["prompt_tokens"], unet.config.cross_attention_dim))
    return unet, config["alpha_bar"]
