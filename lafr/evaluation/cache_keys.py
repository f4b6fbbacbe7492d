"""What a picture or a score hangs on, as a hash: equal only where what was made before may be kept."""

import inspect
import json
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
from lafr.errors import InputError
from lafr.storage import sha256_of_file, sha256_of_tensors, sha256_of_values, write_json


def of_code(*modules: ModuleType) -> str:
    """Return the hex sha256 of the source of modules and whole packages: changed code makes other numbers."""
    files = {}
    for module in modules:
        for root in getattr(module, "__path__", None) or [module.__file__]:
            found = sorted(Path(root).rglob("*.py")) if Path(root).is_dir() else [Path(root)]
            files |= {f"{module.__name__} {path.relative_to(root)}": sha256_of_file(path) for path in found}
    return sha256_of_values(files)


def of_model(restorer: nn.Module) -> str:
    """Return the hash of a restorer's weights and settings."""
    denoiser, lora = restorer.denoiser, restorer.denoiser.lora_config
    configs = {"vae": restorer.codec.vae.config, "unet": denoiser.unet.config, "adapter": restorer.adapter.config}
    settings = {
        **{part: {k: v for k, v in config.items() if not k.startswith("_")} for part, config in configs.items()},
        "denoiser": [denoiser.timestep, denoiser.alpha_bar, denoiser.scale_input, denoiser.text],
        "lora": [lora.r, lora.lora_alpha] if lora else None,
        "resolution": restorer.resolution,
    }
    return sha256_of_values(sha256_of_tensors(restorer.state_dict()), settings)


def of_restorer(restorer: nn.Module) -> str:
    """Return the hash of all that a restorer's pixels hang on: the model, code, device and torch's version."""
    adapter = inspect.getmodule(type(restorer.adapter))
    code = of_code(lafr.models, lafr.images, *([adapter] if getattr(adapter, "__file__", None) else ()))
    return sha256_of_values(of_model(restorer), code, next(restorer.parameters()).device.type, torch.__version__)


def of_metric(name: str, metric, device: torch.device | str = "cpu") -> str:
    """Return the hash of all that a metric's numbers hang on: settings, networks, code, and torch's version."""
    code = of_code(lafr.metrics, lafr.networks, lafr.images)
    return sha256_of_values(name, described(metric), code, torch.device(device).type, torch.__version__)


def described(value) -> object:
    """Return plain values that tell a metric from others: functions by code, networks by weights, the rest by type."""
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
        return [f"{value.__module__}.{value.__qualname__}", value.__code__.co_code.hex(), repr(value.__defaults__),
                [described(c) for c in value.__code__.co_consts if isinstance(c, str | int | float)],
                value.__code__.co_names]  # fmt: skip
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, nn.Module):
        return [kind, sha256_of_tensors(value.state_dict())]
    if callable(value):
        public = {k: v for k, v in vars(value).items() if not k.startswith("_")} if hasattr(value, "__dict__") else {}
        return [kind, own_code(type(value)), described(public)]
    return kind


def own_code(cls: type) -> str:
    """Return the hash of the file that a class stands in; of its name, where there is none."""
    module = inspect.getmodule(cls)
    return of_code(module) if getattr(module, "__file__", None) else cls.__qualname__


def require_same_model(folder: Path, restorer: nn.Module, processes) -> None:
    """Note in `folder` which model is evaluated there; raises InputError when it is another one's.

    The same model under changed code is no other one: its pictures are made again.
    """
    path, now = folder / "work" / "model.json", of_model(restorer)
    if path.is_file() and (before := json.loads(path.read_text())["sha256"]) != now:
        raise InputError(
            f"{str(folder)!r} is the evaluation of another model ({before[:12]}, this one is {now[:12]}); choose "
            "another output=FOLDER or run_name=NAME, or delete it"
        )
    if processes.is_main:
        write_json({"sha256": now}, path)
