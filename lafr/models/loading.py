"""Loading weights: exactly the tensors that a module has, by name, shape and dtype class; none missing, none extra."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lafr.errors import InputError

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names
COUNTS = (
    "layers_per_block", "transformer_layers_per_block", "mid_block_layers_per_block", "num_encoder_blocks",
    "num_decoder_blocks",
)  # fmt: skip
MOST_LAYERS = 64  # of a block; more would take very long to build, even on the meta device


def planned(kind: type[nn.Module], config: Mapping[str, Any], where: str) -> nn.Module:
    """Return a diffusers model by its configuration, on the meta device: shapes and no values.

    Raises InputError when the configuration, found at `where`, is that of another kind of model.
    """
    for name in COUNTS:
        given = config.get(name, 1)
        for count in given if isinstance(given, list | tuple) else [given]:
            if isinstance(count, int | float) and not 0 <= count <= MOST_LAYERS:
                raise InputError(f"{where!r} has {name}={given}; at most {MOST_LAYERS} are taken")
    try:
        # no memory, no random numbers, and errors of the configuration before any file is opened
        with torch.device("meta"):
            return kind.from_config(dict(config))
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{where!r} holds a configuration of another kind of model: {error}") from None


def read_config(kind: type[nn.Module], folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a diffusers model; raises InputError when it is missing or no JSON."""
    try:
        return kind.load_config(folder, local_files_only=True)
    except OSError as error:
        raise InputError(f"{str(folder / 'config.json')!r} cannot be read: {str(error).splitlines()[0]}") from None


def require_shapes(
    files: Sequence[Path], wanted: Mapping[str, Tensor], rename: Callable[[str], str] = lambda name: name
) -> None:
    """Raise InputError unless the headers of safetensors files hold each name and shape of `wanted`, and no other.

    Only headers are read, so that a file that does not fit costs no memory. (diffusers' and torch's own loading would
    give a missing weight a random start and only warn.)

    Args:
        files: the parts of one state dict.
        wanted: what a module has; tensors on the meta device will do.
        rename: from a name in a file to the module's.
    """
    # name -> shape, name -> is it floating-point?
    found, floating = {}, {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118  (it cannot be iterated)
                    part = file.get_slice(name)
                    found[rename(name)] = tuple(part.get_shape())
                    floating[rename(name)] = part.get_dtype() in FLOATS
        except SafetensorError as error:
            raise InputError(f"{str(path)!r} cannot be read ({error}); fetch or save it again") from None
    where = str(files[0].parent)
    # sorted: the first difference is the same on every machine
    for name in sorted(wanted.keys() | found.keys()):
        has, needs = found.get(name), tuple(wanted[name].shape) if name in wanted else None
        if has != needs:
            raise InputError(
                f"weights in {where!r} do not fit: {name} is {'missing' if has is None else has}, "
                f"not {'expected' if needs is None else needs}; fetch or save them again"
            )
        # half precision is fine for floats, as it is cast; integers for weights are another file's
        if floating[name] != wanted[name].is_floating_point():
            raise InputError(f"weights in {where!r} do not fit: {name} holds another kind of numbers")


def load_exactly(path: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the safetensors at `path`.

    Raises InputError unless its names and shapes are exactly those of `wanted` and all its values finite.
    """
    if not path.is_file():
        raise InputError(f"{str(path)!r} is missing; give a folder that LAFR saved")
    require_shapes([path], wanted)
    return require_finite(load_file(path), path)


def require_finite(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights read from `path`; raises InputError, naming the first, when one holds NaN or infinity."""
    for name, value in state.items():
        # the sum of a tensor with NaN or infinity is not finite: one pass, and no tensor of booleans
        if value.is_floating_point() and not torch.isfinite(value.sum(dtype=torch.float64)):
            raise InputError(
                f"weights in {str(path)!r} are damaged: {name} holds NaN or infinity; fetch or save them again"
            )
    return dict(state)
