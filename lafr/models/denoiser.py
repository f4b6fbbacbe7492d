"""The one-step denoiser: a Stable Diffusion UNet without text and time, with a LoRA."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.loading import existing, load_exactly

# OSEDiff's list; conv alone is the resampling layers' name in diffusers.
LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip


class _NoTime(nn.Module):
    # ResnetBlock2D without a projection would add the raw embedding, so there must be none.
    def forward(self, *_) -> None:
        return None


def fold_time(unet: UNet2DConditionModel, timestep: int) -> None:
    """Add each resnet's time projection at `timestep` to the bias of its first convolution: exact, in place."""
    with torch.no_grad():
        weight = unet.time_embedding.linear_1.weight
        t = torch.tensor([timestep], device=weight.device)
        embedding = unet.time_embedding(unet.time_proj(t).to(weight.dtype))  # [1, D]
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D) and block.time_emb_proj is not None:
                if block.time_embedding_norm != "default" or block.skip_time_act:
                    raise InputError(
                        f"time can be folded only where it is added; this UNet uses {block.time_embedding_norm}"
                    )
                block.conv1.bias += block.time_emb_proj(block.nonlinearity(embedding))[0]


def remove_text_and_time(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Delete cross-attention (`attn2`, `norm2`) and the time layers, in place."""
    unet.time_embedding = _NoTime()
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            block.attn2 = block.norm2 = None
        elif isinstance(block, ResnetBlock2D):
            block.time_emb_proj = None
    return unet


class Denoiser(nn.Module):
    """One step from `z` at the fixed time t*: z0 = (z_t - sqrt(1 - abar) eps(z_t)) / sqrt(abar), no noise added.

    Args:
        unet: pruned of text and time; frozen here.
        timestep: t*, already folded into `unet`.
        alpha_bar: the noise schedule's cumulative product at t*.
        scale_input: feed sqrt(abar) z, which is what a clean latent is at t* (default), or raw z (OSEDiff).
    """

    def __init__(self, unet: UNet2DConditionModel, timestep: int, alpha_bar: float, scale_input: bool = True):
        super().__init__()
        self.unet = unet.requires_grad_(False)
        self.timestep, self.alpha_bar, self.scale_input = timestep, alpha_bar, scale_input
        self.lora_config: LoraConfig | None = None

    @classmethod
    def from_base(cls, unet: UNet2DConditionModel, scheduler, timestep: int, scale_input: bool = True) -> "Denoiser":
        """Prune a pretrained UNet, in place, for one step at `timestep` of `scheduler`'s noise schedule."""
        kind, steps = scheduler.config.prediction_type, len(scheduler.alphas_cumprod)
        if kind != "epsilon":
            raise InputError(f"the base model predicts {kind!r}; LAFR needs one that predicts epsilon")
        if not 0 <= timestep < steps:
            raise InputError(f"model.timestep={timestep} is not in 0..{steps - 1}, the base model's noise schedule")
        fold_time(unet, timestep)
        return cls(remove_text_and_time(unet), timestep, float(scheduler.alphas_cumprod[timestep]), scale_input)

    def forward(self, z: Tensor) -> Tensor:
        """Map `z [B, C, h, w]` to `z_restored`, same shape, float32."""
        signal, noise = self.alpha_bar**0.5, (1 - self.alpha_bar) ** 0.5
        z_t = z * signal if self.scale_input else z
        eps = self.unet(z_t, self.timestep, encoder_hidden_states=None).sample
        with torch.autocast(z.device.type, enabled=False):  # 1 / sqrt(abar) is up to 14.6: float32
            return (z_t.float() - noise * eps.float()) / signal  # DDPM, Eq. 15

    def add_lora(self, rank: int = 4, alpha: int = 8, targets: Sequence[str] = LORA_TARGETS, seed: int = 0) -> None:
        """Add a LoRA (Hu et al., 2022) to the layers whose names end in `targets`; gaussian start drawn by `seed`."""
        self.lora_config = LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=list(targets), init_lora_weights="gaussian"
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.unet.add_adapter(self.lora_config)

    def lora_parameters(self) -> list[nn.Parameter]:
        """Return the LoRA's weights: all that restoration trains."""
        return [p for name, p in self.unet.named_parameters() if ".lora_" in name]

    def save_lora(self, folder: str | Path) -> None:
        """Write the LoRA alone: `lora.safetensors` and its configuration."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"rank": self.lora_config.r, "alpha": self.lora_config.lora_alpha,
                  "targets": sorted(self.lora_config.target_modules)}  # fmt: skip
        (folder / "lora.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(get_peft_model_state_dict(self.unet, adapter_name="default"), folder / "lora.safetensors")

    def load_lora(self, folder: str | Path) -> None:
        """Add and load a LoRA that `save_lora` wrote; missing and unexpected keys are errors."""
        folder = Path(folder)
        self.add_lora(**json.loads(existing(folder / "lora.json").read_text()))
        wanted = get_peft_model_state_dict(self.unet, adapter_name="default")
        state = {k: v.float() for k, v in load_exactly(folder / "lora.safetensors", wanted).items()}
        set_peft_model_state_dict(self.unet, state, adapter_name="default")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the pruned UNet and, where there is one, the LoRA beside it."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        unet = {k: v for k, v in self.unet.config.items() if k != "_name_or_path"}  # a path of this machine
        config = {"timestep": self.timestep, "alpha_bar": self.alpha_bar, "scale_input": self.scale_input, "unet": unet}
        (folder / "config.json").write_text(json.dumps(config, indent=1, default=list) + "\n")
        base = {k.replace(".base_layer.", "."): v for k, v in self.unet.state_dict().items() if ".lora_" not in k}
        save_file({k: v.contiguous() for k, v in base.items()}, folder / "denoiser.safetensors")
        if self.lora_config:
            self.save_lora(folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Denoiser":
        """Load what `save_pretrained` wrote, bit for bit; missing and unexpected keys are errors.

        (diffusers' own loading would silently recreate the pruned layers with random weights.)
        """
        folder = Path(folder)
        config = json.loads(existing(folder / "config.json").read_text())
        with torch.device("meta"):
            unet = remove_text_and_time(UNet2DConditionModel.from_config(config.pop("unet")))
        state = load_exactly(folder / "denoiser.safetensors", unet.state_dict())
        unet.load_state_dict(state, assign=True)
        denoiser = cls(unet, **config)
        if (folder / "lora.json").is_file():
            denoiser.load_lora(folder)
        return denoiser
