"""The one-step denoiser: a Stable Diffusion UNet without text and time inputs, with a LoRA."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.folding import PromptAttention, fold_time, remove_time, replace_text, require_foldable
from lafr.models.loading import existing, load_exactly
from lafr.models.lora import (
    CONFIG,
    LORA_TARGETS,
    lora_state,
    plain_state,
    read_lora,
    read_lora_config,
    remove_lora,
    scaled_lora,
    write_lora,
)
from lafr.storage import atomic_write


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
        self.unet = unet.requires_grad_(False)
        self.timestep, self.alpha_bar, self.scale_input, self.text = timestep, alpha_bar, scale_input, text
        self.lora_config: LoraConfig | None = None

    @classmethod
    def from_base(
        cls,
        unet: UNet2DConditionModel,
        scheduler,
        timestep: int,
        scale_input: bool = True,
        text: str = "none",
        null_embedding: Tensor | None = None,
    ) -> "Denoiser":
        """Prune a pretrained UNet, in place, for one step at `timestep` of `scheduler`'s noise schedule.

        `text="empty_prompt"` needs `null_embedding [1, L, D]`, the text encoder's output for the empty prompt.
        Raises InputError, and leaves the UNet as it is, when time, schedule, UNet or text are not possible.
        """
        kind, steps = scheduler.config.prediction_type, len(scheduler.alphas_cumprod)
        if kind != "epsilon":
            raise InputError(f"the base model predicts {kind!r}; LAFR needs one that predicts epsilon")
        if not 0 <= timestep < steps:
            raise InputError(
                f"model.build.timestep={timestep} is not in 0..{steps - 1}, the base model's noise schedule"
            )
        require_foldable(unet, text, null_embedding)
        fold_time(unet, timestep)
        remove_time(unet)
        replace_text(unet, text, null_embedding)
        return cls(unet, timestep, float(scheduler.alphas_cumprod[timestep]), scale_input, text)

    def forward(self, z: Tensor, lora_scale: float = 1.0) -> Tensor:
        """Map `z [B, C, h, w]` to `z_restored`, same shape; float32, whatever the precision of the UNet.

        What the LoRA adds is multiplied by `lora_scale`; raises InputError when that is not 1 and there is no LoRA to
        scale.
        """
        if lora_scale != 1:
            self.require_lora()
            with scaled_lora(self.unet, lora_scale):
                return self(z)
        signal, noise = self.alpha_bar**0.5, (1 - self.alpha_bar) ** 0.5
        z_t = z.float() * signal if self.scale_input else z.float()
        eps = self.unet(z_t.to(self.unet.conv_in.weight.dtype), self.timestep, encoder_hidden_states=None).sample
        with torch.autocast(z.device.type, enabled=False):  # 1 / sqrt(abar) is up to 14.6: float32
            return (z_t - noise * eps.float()) / signal  # DDPM, Eq. 15

    def add_lora(self, rank: int = 4, alpha: int = 8, targets: Sequence[str] = LORA_TARGETS, seed: int = 0) -> None:
        """Add a LoRA (Hu et al., 2022) to the layers whose names end in `targets`; gaussian start drawn by `seed`."""
        self.lora_config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian"
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(self.lora_config)

    def require_lora(self) -> None:
        """Raise InputError when there is no LoRA that a fidelity could scale."""
        if not self.lora_config:
            raise InputError(
                "fidelity > 0 scales the LoRA, and this model's was merged or never added; load the model as it was "
                "trained, without optimising it (fast=false), or give fidelity=0"
            )

    def lora_parameters(self) -> list[nn.Parameter]:
        """Return the LoRA's weights: all that restoration trains."""
        return [p for name, p in self.unet.named_parameters() if ".lora_" in name]

    def merge_lora(self) -> None:
        """Add the LoRA to the weights it belongs to and remove its layers, in place; nothing to do without one."""
        if self.lora_config:
            self.unet.fuse_lora()
            self.unet.unload_lora()
            self.lora_config = None

    def save_lora(self, folder: str | Path) -> None:
        """Write the LoRA alone, as a file that diffusers' `load_lora_weights` reads, and its configuration."""
        if not self.lora_config:
            raise InputError("this denoiser has no LoRA, or it was merged; save all of it (save_pretrained)")
        write_lora(self.unet, self.lora_config, Path(folder))

    def load_lora(self, folder: str | Path) -> None:
        """Add and load a LoRA that `save_lora` wrote; missing and unexpected keys are errors."""
        folder = Path(folder)
        self.add_lora(**read_lora_config(folder))
        set_peft_model_state_dict(self.unet, read_lora(folder, lora_state(self.unet)), adapter_name="default")

    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
        """Write the pruned UNet and, where there is one, the LoRA beside it; with `merge`, the LoRA in its weights.

        `merge` writes what `merge_lora` would leave, and leaves this denoiser as it is.
        """
        folder = Path(folder)
        unet = {k: v for k, v in self.unet.config.items() if k != "_name_or_path"}  # a path of this machine
        config = {"timestep": self.timestep, "alpha_bar": self.alpha_bar, "scale_input": self.scale_input,
                  "text": self.text, "unet": unet}  # fmt: skip
        if prompts := [layer for layer in self.unet.modules() if isinstance(layer, PromptAttention)]:
            config["prompt_tokens"] = prompts[0].key.shape[2]
        remove_lora(folder)
        atomic_write(folder / "denoiser.safetensors", lambda aside: save_file(plain_state(self.unet, merge), aside))
        text = json.dumps(config, indent=1, default=list) + "\n"
        atomic_write(folder / "config.json", lambda aside: aside.write_text(text))
        if self.lora_config and not merge:
            self.save_lora(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Denoiser":
        """Load what `save_pretrained` wrote, bit for bit; missing and unexpected keys are errors.

        (diffusers' own loading would silently recreate the pruned layers with random weights.)
        """
        folder = Path(folder)
        config = json.loads(existing(folder / "config.json").read_text())
        tokens = config.pop("prompt_tokens", 1)
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config.pop("unet"))
            remove_time(unet)
            replace_text(unet, config.get("text", "none"), torch.empty(1, tokens, unet.config.cross_attention_dim))
        state = load_exactly(folder / "denoiser.safetensors", unet.state_dict())
        unet.load_state_dict(state, assign=True)
        denoiser = cls(unet, **config)
        if (folder / CONFIG).is_file():
            denoiser.load_lora(folder)
        return denoiser
