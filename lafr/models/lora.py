"""The denoiser's LoRA (Hu et al., 2022) and its file, which plain diffusers reads too.

A Stable Diffusion pipeline's `load_lora_weights(folder)` reads it, or that of its UNet alone,
`load_lora_adapter(folder, prefix="unet", use_safetensors=True)`.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY, LORA_WEIGHT_NAME_SAFE
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor

from lafr.models.loading import existing, load_exactly
from lafr.storage import atomic_write

# OSEDiff's list; conv alone is the resampling layers' name in diffusers.
LORA_TARGETS = (
    "to_q", "to_k", "to_v", "to_out.0", "conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
    "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
)  # fmt: skip

CONFIG = "lora.json"  # arguments of `Denoiser.add_lora`; a folder without it holds no LoRA
WEIGHTS = LORA_WEIGHT_NAME_SAFE
WEIGHTS_0_1 = "lora.safetensors"  # LAFR 0.1.0's, with peft's names
PREFIX = "unet."  # diffusers': a file may hold a text encoder's LoRA as well


def lora_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """Return the LoRA's weights by peft's names, `<layer>.lora_A.weight` and `<layer>.lora_B.weight`."""
    return get_peft_model_state_dict(unet, adapter_name="default")


def write_lora(unet: UNet2DConditionModel, config: LoraConfig, folder: Path) -> None:
    """Write diffusers' `pytorch_lora_weights.safetensors`, in the precision of the weights, and `lora.json`."""
    remove_lora(folder)
    state = {k: v.contiguous() for k, v in lora_state(unet).items()}
    settings = {"r": config.r, "lora_alpha": config.lora_alpha,
                "target_modules": sorted({k.rpartition(".lora_")[0] for k in state})}  # fmt: skip
    # One key: with more, safetensors writes them in any order, and equal weights would make unequal files.
    metadata = {LORA_ADAPTER_METADATA_KEY: json.dumps({PREFIX + k: v for k, v in settings.items()})}
    own = {"rank": config.r, "alpha": config.lora_alpha, "targets": sorted(config.target_modules)}
    prefixed = {PREFIX + k: v for k, v in state.items()}
    atomic_write(folder / WEIGHTS, lambda aside: save_file(prefixed, aside, metadata))
    atomic_write(folder / CONFIG, lambda aside: aside.write_text(json.dumps(own, indent=1) + "\n"))


def read_lora_config(folder: Path) -> dict:
    """Return the arguments of `Denoiser.add_lora`; raises InputError when the folder holds no LoRA."""
    return json.loads(existing(folder / CONFIG).read_text())


def read_lora(folder: Path, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Return the weights by peft's names, float32; raises InputError unless they are exactly `wanted`."""
    path, prefix = folder / WEIGHTS, PREFIX
    if not path.is_file() and (folder / WEIGHTS_0_1).is_file():
        path, prefix = folder / WEIGHTS_0_1, ""
    state = load_exactly(path, (prefix + name for name in wanted))
    return {name.removeprefix(prefix): value.float() for name, value in state.items()}


def remove_lora(folder: Path) -> None:
    """Delete an earlier LoRA from a folder, the file that announces it first."""
    for name in (CONFIG, WEIGHTS, WEIGHTS_0_1):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def scaled_lora(unet: UNet2DConditionModel, factor: float) -> Iterator[None]:
    """Multiply what the LoRA adds by `factor`, while this lasts; the weights are not touched."""
    before = [(layer.scaling, dict(layer.scaling)) for layer in unet.modules() if isinstance(layer, LoraLayer)]
    try:
        for scaling, trained in before:
            scaling.update({name: factor * value for name, value in trained.items()})
        yield
    finally:
        for scaling, trained in before:
            scaling.update(trained)


def plain_state(unet: UNet2DConditionModel, merge: bool = False) -> dict[str, Tensor]:
    """Return the UNet's weights by the names they have without a LoRA; with `merge`, the LoRA added to them."""
    state = {k.replace(".base_layer.", "."): v for k, v in unet.state_dict().items() if ".lora_" not in k}
    if merge:
        for name, layer in unet.named_modules():
            if isinstance(layer, LoraLayer):
                state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight("default").detach()
    return {k: v.contiguous() for k, v in state.items()}
