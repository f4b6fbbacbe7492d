"""The denoiser's LoRA (Hu et al., 2022) and its file, which plain diffusers reads too.

A Stable Diffusion pipeline's `load_lora_weights(folder)` reads it, or that of its UNet alone,
`load_lora_adapter(folder, prefix="unet", use_safetensors=True)`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.loading import load_exactly, read_header, require_file
from lafr.storage import atomic_write

if TYPE_CHECKING:  # peft's import takes a second; what only merges a saved LoRA doesn't need it
    from peft import LoraConfig

# OSEDiff's list; conv alone is the resampling layers' name in diffusers.
LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip

WEIGHTS = LORA_WEIGHT_NAME_SAFE
PREFIX = "unet."  # diffusers': a file may hold a text encoder's LoRA as well


def lora_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the LoRA's weights by peft's names, `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(unet, adapter_name="default")


def lora_settings(config: "LoraConfig") -> dict:
    """Return rank, alpha and targets, the arguments of `Denoiser.add_lora` that a saved model keeps."""
    return {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}


def write_lora(unet: UNet2DConditionModel, config: "LoraConfig", folder: Path) -> None:
    """Write diffusers' `pytorch_lora_weights.safetensors`, in the precision of the weights."""
    state = {name: value.contiguous() for name, value in lora_state(unet).items()}
    settings = {
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted({name.rpartition(".lora_")[0] for name in state}),
    }
    # One key: with more, safetensors writes them in any order, and equal weights would make unequal files.
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps({PREFIX + key: value for key, value in settings.items()})}
    prefixed = {PREFIX + name: value for name, value in state.items()}
    atomic_write(folder / WEIGHTS, lambda temporary: save_file(prefixed, temporary, metadata))


def require_rank(folder: Path, rank: int) -> None:
    """Raise InputError unless the matrices A `[rank, C]` of a LoRA's file are of this rank; only headers are read."""
    path = folder / WEIGHTS
    require_file(path)
    for name, (shape, _) in read_header(path).items():
        if name.endswith(".lora_A.weight") and shape[:1] != (rank,):
            raise InputError(f"weights in {str(path)!r} do not fit: {name} is {shape}, not of rank {rank}")


def read_lora(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights by peft's names, float32; raises InputError unless names and shapes are those of `wanted`."""
    state = load_exactly(folder / WEIGHTS, {PREFIX + name: value for name, value in wanted.items()})
    return {name.removeprefix(PREFIX): value.float() for name, value in state.items()}


def plain_state(unet: UNet2DConditionModel, merge: bool = False) -> dict[str, Tensor]:
    """Return the UNet's weights by the names they have without a LoRA; with `merge`, the LoRA added to them."""
    from peft.tuners.lora import LoraLayer

    # peft moves a layer with a LoRA to `base_layer` inside a wrapper
    state = {k.replace(".base_layer.", "."): v for k, v in unet.state_dict().items() if ".lora_" not in k}
    if merge:
        for name, layer in unet.named_modules():
            if isinstance(layer, LoraLayer):
                state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight("default").detach()
    return {k: v.contiguous() for k, v in state.items()}


@torch.no_grad()
def merge_saved(
    unet: UNet2DConditionModel, folder: Path, rank: int, alpha: float, targets: Sequence[str] = LORA_TARGETS
) -> None:
    """Add the LoRA that `write_lora` wrote to the weights it belongs to, in place, without peft.

    Raises InputError unless names and shapes are those that `Denoiser.add_lora` would give the UNet.
    """
    ends = tuple(f".{target}" for target in targets)
    layers = {name: layer for name, layer in unet.named_modules() if f".{name}".endswith(ends)}
    other = sorted(name for name, layer in layers.items() if not isinstance(layer, nn.Linear | nn.Conv2d))
    if other or not layers:
        raise InputError(f"the LoRA of {str(folder)!r} does not fit the UNet: its targets are {other or 'no layer'}")
    wanted = {}
    for name, layer in layers.items():
        outputs, *inputs = layer.weight.shape
        wanted[f"{name}.lora_A.weight"] = torch.empty(rank, *inputs, device="meta")
        # after a convolution's A follows a 1 x 1 one
        wanted[f"{name}.lora_B.weight"] = torch.empty(outputs, rank, *(1 for _ in inputs[1:]), device="meta")
    state = read_lora(folder, wanted)
    for name, layer in layers.items():
        a, b = (state[f"{name}.lora_{matrix}.weight"].flatten(1) for matrix in "AB")
        # W + alpha / rank * B A
        layer.weight += (alpha / rank * b @ a).view_as(layer.weight).to(layer.weight)
