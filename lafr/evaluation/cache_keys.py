"""Cache keys: hashes of everything that a restored image or a score depends on."""

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import torch
from torch import Tensor, nn

import lafr.images
import lafr.metrics
import lafr.models
import lafr.networks
from lafr.errors import InputError, setting
from lafr.models.adapter import builder_of
from lafr.storage import read_sealed, sha256_of_file, sha256_of_tensors, sha256_of_values, write_sealed


def key_of_code(*modules: ModuleType) -> str:
    """Return the key of the source of modules and whole packages: changed code may change the numbers."""
    files: dict[str, str] = {}
    for module in modules:
        for root in getattr(module, "__path__", None) or [module.__file__]:
            found = sorted(Path(root).rglob("*.py")) if Path(root).is_dir() else [Path(root)]
            files |= {f"{module.__name__} {path.relative_to(root)}": sha256_of_file(path) for path in found}
    return sha256_of_values(files)


def key_of_model(restorer: nn.Module) -> str:
    """Return the key of a restorer's weights and settings."""
    denoiser, lora = restorer.denoiser, restorer.denoiser.lora_config
    configs = {"vae": restorer.codec.vae.config, "unet": denoiser.unet.config, "adapter": restorer.adapter.settings}

    def public(config: Mapping) -> dict:  # diffusers adds its version and class under names with an underscore
        return {key: value for key, value in config.items() if not key.startswith("_")}

    settings = {
        **{part: public(config) for part, config in configs.items()},
        "kind": restorer.adapter.kind,
        "denoiser": [denoiser.timestep, denoiser.alpha_bar, denoiser.scale_input, denoiser.text],
        "lora": [lora.r, lora.lora_alpha] if lora else None,
        "resolution": restorer.resolution,
    }
    return sha256_of_values(sha256_of_tensors(restorer.state_dict()), settings)


def key_of_restorer(restorer: nn.Module) -> str:
    """Return the key of a restorer's images: the model, the code, the kind of device and torch's version."""
    builder = builder_of(restorer.adapter.kind)
    adapter = inspect.getmodule(getattr(builder, "quantizer", builder))  # perhaps the user's own module
    code = key_of_code(lafr.models, lafr.images, *([adapter] if getattr(adapter, "__file__", None) else ()))
    return sha256_of_values(key_of_model(restorer), code, next(restorer.parameters()).device.type, torch.__version__)


def key_of_metric(name: str, metric: object, device: torch.device | str = "cpu") -> str:
    """Return the key of a metric's numbers: settings, networks, code, the kind of device and torch's version."""
    code = key_of_code(lafr.metrics, lafr.networks, lafr.images)
    return sha256_of_values(name, described(metric), code, torch.device(device).type, torch.__version__)


def described(value: object) -> object:
    """Return `value` as plain values: a function by its code, a network by its weights, an object by its settings."""
    if value is None or isinstance(value, str | int | float | Path):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        items = [described(item) for item in value]
        return sorted(items, key=str) if isinstance(value, set | frozenset) else items
    if isinstance(value, Mapping):
        return {str(key): described(item) for key, item in value.items()}
    if isinstance(value, Tensor | np.ndarray):
        return sha256_of_tensors({"": torch.as_tensor(value)})
    if isinstance(value, partial):
        return ["partial", described(value.func), described(value.args), described(value.keywords)]
    if isinstance(value, FunctionType):
        code = value.__code__
        constants = [described(constant) for constant in code.co_consts if isinstance(constant, str | int | float)]
        name = f"{value.__module__}.{value.__qualname__}"
        return [name, code.co_code.hex(), repr(value.__defaults__), constants, code.co_names]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return [kind, sha256_of_tensors(value.state_dict())]
    if callable(value):
        public = {k: v for k, v in vars(value).items() if not k.startswith("_")} if hasattr(value, "__dict__") else {}
        return [kind, key_of_class(type(value)), described(public)]
    return kind


def key_of_class(cls: type) -> str:
    """Return the key of the file that defines a class; its name, where there is no file (a class typed in a shell)."""
    module = inspect.getmodule(cls)
    return key_of_code(module) if module and getattr(module, "__file__", None) else cls.__qualname__


def require_same_model(folder: Path, restorer: nn.Module, write: bool = True) -> None:
    """Record in `folder` which model is evaluated there; raises InputError when it belongs to another model.

    The same model under changed code is allowed: its images are restored again. `write` is for the main process.
    """
    path, now = folder / "work" / "model.json", key_of_model(restorer)
    if path.is_file() and (before := read_sealed(path)["model"]) != now:
        raise InputError(
            f"{str(folder)!r} is the evaluation of another model ({before[:12]}, this one is {now[:12]})",
            remedy=f"choose another {setting('output')} or {setting('run_name')}, or delete the folder",
        )
    if write:
        write_sealed({"model": now}, path)
