"""Loading weights: exactly the tensors that a module has, by name, shape and dtype class; none missing, none extra."""

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from lafr.errors import InputError, reason_of
from lafr.models.schema import read_object

FLOATS = ("F64", "F32", "F16", "BF16")  # safetensors' names
COUNTS = (
    "layers_per_block", "transformer_layers_per_block", "mid_block_layers_per_block", "num_encoder_blocks",
    "num_decoder_blocks",
)  # fmt: skip

# Far above any model in use, and small enough that no folder can ask for absurd memory or time.
MOST_LAYERS = 4096  # blocks x layers x transformers: more would take very long to build, even on the meta device
MOST_BLOCKS = 64  # entries of a list in a configuration
LARGEST = 1 << 20  # a number in a configuration
MOST_VALUES = 4 * 10**9  # of one state dict; Stable Diffusion's UNet has 0.9 * 10**9
MOST_FILES = 10_000  # below a model's folder


def require_own(folder: Path, parts: Sequence[str]) -> None:
    """Raise InputError unless all that lies under `parts` of a model's folder are regular files inside it.

    A link or `..` would read files that the folder's author does not have; a FIFO or device would block. In the hub's
    cache, a snapshot's files are links to `blobs` of the same repository.
    """
    root = folder.resolve()
    inside = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    tops = [folder / part for part in parts]
    below = (path for top in tops if not top.is_symlink() and top.is_dir() for path in top.rglob("*"))
    for number, path in enumerate(itertools.chain(tops, below)):
        if number > MOST_FILES:
            raise InputError(f"{str(folder)!r} holds more than {MOST_FILES} files; give the folder of a model alone")
        if not path.is_symlink() and not path.exists():
            continue
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):  # a link to itself is a RuntimeError before Python 3.13
            raise InputError(f"{str(path)!r} is a link to nothing; fetch or save the model again") from None
        if not any(target.is_relative_to(place) for place in inside):
            raise InputError(f"{str(path)!r} leads out of the model's folder; if you trust it, copy the file there")
        if not target.is_file() and not target.is_dir():
            raise InputError(f"{str(path)!r} is no regular file; fetch or save the model again")


def _plain_values(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _plain_values(item)
    elif isinstance(value, list | tuple):
        yield value
        for item in value:
            yield from _plain_values(item)
    else:
        yield value


def require_modest(config: Mapping[str, Any], where: str) -> None:
    """Raise InputError when a configuration's numbers or lists are absurd: nothing may be built from them."""
    for name, given in config.items():
        for value in _plain_values(given):
            if isinstance(value, list | tuple) and len(value) > MOST_BLOCKS:
                raise InputError(f"{where!r} has {name} with {len(value)} entries; at most {MOST_BLOCKS} are taken")
            if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= LARGEST):
                raise InputError(f"{where!r} has {name}={value:.3g}; at most {LARGEST} is taken")


def planned(kind: type[nn.Module], config: Mapping[str, Any], where: str, own: bool = False) -> nn.Module:
    """Return a diffusers model by its configuration, on the meta device: shapes and no values.

    Args:
        kind: class of the model.
        config: its configuration.
        where: the file that holds it, for errors.
        own: LAFR wrote it, and it holds no key that `kind` does not know.

    Raises InputError when it is the configuration of another kind of model, or asks for an absurd size.
    """
    require_modest(config, where)
    known = inspect.signature(kind.__init__).parameters
    # diffusers ignores keys that it does not know, but loads a quantised model by other libraries
    unknown = [name for name in config if name not in known and not name.startswith("_")]
    if refused := unknown if own else [name for name in unknown if name == "quantization_config"]:
        raise InputError(f"{where!r} has unknown {', '.join(map(repr, refused))[:200]}; fetch or save it again")
    depths = [[item for item in _plain_values(config.get(name)) if isinstance(item, int)] for name in COUNTS]
    layers = len(config.get("block_out_channels") or [0] * 4) * math.prod(max([1, *depth]) for depth in depths)
    if layers > MOST_LAYERS or any(number < 0 for depth in depths for number in depth):
        raise InputError(f"{where!r} asks for {layers:.3g} layers; at most {MOST_LAYERS} are taken")
    try:
        # no memory, no random numbers, and errors of the configuration before any file is opened
        with torch.device("meta"):
            model = kind.from_config(dict(config))
    except Exception as error:  # a configuration of anything can fail in any way, a division by zero among them
        raise InputError(f"{where!r} holds a configuration of another kind of model: {reason_of(error)}") from None
    if sum(value.numel() for value in model.state_dict().values()) > MOST_VALUES:
        raise InputError(f"{where!r} asks for more than {MOST_VALUES} weights; it is no model that LAFR can use")
    return model


def read_config(folder: Path) -> dict[str, Any]:
    """Return the `config.json` of a diffusers model; raises InputError when it is missing or no JSON object."""
    return read_object(folder / "config.json")


def require_file(path: Path) -> None:
    """Raise InputError when a file that a model needs is missing."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is missing; give a folder that LAFR saved")


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return shape, and whether it holds floating-point numbers, of each tensor of a safetensors file, by name."""
    try:
        with safe_open(path, "pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  (it cannot be iterated)
            return {name: (tuple(part.get_shape()), part.get_dtype() in FLOATS) for name, part in parts.items()}
    except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: more bytes than can be mapped
        raise InputError(f"{str(path)!r} cannot be read ({error}); fetch or save it again") from None


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
    found: dict[str, tuple[tuple[int, ...], bool]] = {}
    for path in files:
        for name, header in read_header(path).items():
            if found.setdefault(rename(name), header) is not header:
                raise InputError(f"{str(path)!r} holds {name} a second time; fetch or save it again")
    where = str(files[0] if len(files) == 1 else files[0].parent)
    # sorted: the first difference is the same on every machine
    for name in sorted(wanted.keys() | found.keys()):
        has, floating = found.get(name, (None, True))
        needs = tuple(wanted[name].shape) if name in wanted else None
        if has != needs:
            raise InputError(
                f"weights in {where!r} do not fit: {name} is {'missing' if has is None else has}, "
                f"not {'expected' if needs is None else needs}; fetch or save them again"
            )
        # half precision is fine for floats, as it is cast; integers for weights are another file's
        if floating != wanted[name].is_floating_point():
            raise InputError(f"weights in {where!r} do not fit: {name} holds another kind of numbers")


def load_exactly(
    files: Path | Sequence[Path], wanted: Mapping[str, Tensor], rename: Callable[[str], str] = lambda name: name
) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, or of the parts of one state dict.

    Raises InputError unless names and shapes are exactly those of `wanted` and all values finite; see
    `require_shapes`.
    """
    files = [files] if isinstance(files, Path) else list(files)
    for path in files:
        require_file(path)
    require_shapes(files, wanted, rename)
    return {rename(name): value for path in files for name, value in require_finite(load_file(path), path).items()}


def require_finite(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the weights read from `path`; raises InputError, naming the first, when one holds NaN or infinity."""
    for name, value in state.items():
        # the sum of a tensor with NaN or infinity is not finite: one pass, and no tensor of booleans
        if value.is_floating_point() and not torch.isfinite(value.sum(dtype=torch.float64)):
            raise InputError(
                f"weights in {str(path)!r} are damaged: {name} holds NaN or infinity; fetch or save them again"
            )
    return dict(state)
