"""The methods that an evaluation compares: how each makes its images from LQ and HQ, and their cache keys."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lafr.data.benchmarks import Pair
from lafr.errors import InputError
from lafr.evaluation.cache_keys import key_of_restorer
from lafr.evaluation.plan import CEILING, HQ, LQ, MODEL
from lafr.images import read_image
from lafr.models.restorer import Restorer, share_of_input
from lafr.storage import sha256_of_file, sha256_of_values


@dataclass(frozen=True)
class Batch:
    """Test images that are restored together: `lq` and, where there is a ground truth, `hq`, `[B, 3, R, R]`."""

    number: int
    pairs: list[Pair]
    lq: Tensor
    hq: Tensor | None

    @property
    def stems(self) -> list[str]:
        """The images' names."""
        return [pair.stem for pair in self.pairs]


@dataclass(frozen=True)
class Method:
    """One method of a comparison, a row of its table.

    Args:
        make: maps a batch to restored images `[B, 3, R, R]` in [-1, 1], not rounded.
        key: maps a pair to a hash of everything but the pair that its restored image depends on; None: not cached.
        of: the sides of the pair that it depends on.
        source: maps a pair to the file that this image is read from, and perhaps resized, if it is: one of the
            image's size is copied.
    """

    make: Callable[[Batch], Tensor]
    key: Callable[[Pair], str | None] = lambda pair: None
    of: tuple[str, ...] = ("lq", "hq")
    source: Callable[[Pair], Path | None] = lambda pair: None

    @property
    def needs_hq(self) -> bool:
        """Whether it makes no image without a ground truth."""
        return self.of == ("hq",)


def method_of(restore: Callable[[Tensor, Tensor | None], Tensor], key: str | None = None, **settings: Any) -> Method:
    """Return the method of a function of (lq, hq); without a key its images are never cached."""
    return Method(lambda batch: restore(batch.lq, batch.hq), lambda pair: key, **settings)


def standard_methods(
    restorer: Restorer, controls: Mapping[str, Callable[[Tensor], Tensor]], fidelity: float = 0.0
) -> dict[str, Method]:
    """Return the input, the codec alone on LQ and on HQ (the ceiling), the adapter without the UNet, controls and LAFR.

    `fidelity` applies to LAFR; the controls restore as they were trained.
    """
    codec, key = restorer.codec, key_of_restorer(restorer)

    def part(name: str, restore: Callable[[Tensor, Tensor | None], Tensor], side: str = "lq") -> dict[str, Method]:
        return {name: method_of(restore, sha256_of_values(key, name), of=(side,))}

    return {
        **input_method(),
        **part("codec(LQ)", lambda lq, hq: codec.reconstruct(lq)),
        **part("adapter only", lambda lq, hq: codec.decode(restorer.adapter(codec.encode(lq)))),
        **{name: control_method(control) for name, control in controls.items()},
        MODEL: at_fidelity(restorer, fidelity, key),
        **part(CEILING, lambda lq, hq: codec.reconstruct(hq), side="hq"),
    }


def input_method() -> dict[str, Method]:
    """Return the input itself, unrestored."""
    return {LQ: Method(lambda batch: batch.lq, lambda pair: "lq", ("lq",), lambda pair: pair.lq_path)}


def truth_method() -> dict[str, Method]:
    """Return the ground truth: written like a method's images, never scored."""
    return {HQ: Method(lambda batch: batch.hq, lambda pair: "hq", ("hq",), lambda pair: pair.hq_path)}


def control_method(control: Callable[[Tensor], Tensor]) -> Method:
    """Return another restorer as a method, or any function of LQ, which is not cached."""
    key = key_of_restorer(control) if hasattr(control, "denoiser") else None
    return method_of(lambda lq, hq: control(lq), key, of=("lq",))


def at_fidelity(restorer: Restorer, fidelity: float, key: str | None = None) -> Method:
    """Return LAFR at a fidelity; `key` is that of the restorer, where it is known."""
    key = sha256_of_values(key or key_of_restorer(restorer), share_of_input(fidelity))
    return method_of(lambda lq, hq: restorer(lq, fidelity=fidelity) if fidelity else restorer(lq), key, of=("lq",))


def output_method(files: Mapping[str, Path], side: int) -> Method:
    """Return what another method restored: stem -> file, `side` pixels wide and high."""

    def read(stem: str) -> Tensor:
        image = read_image(files[stem])
        if image.shape[1:] != (side, side):
            raise InputError(f"{str(files[stem])!r} is {image.shape[2]} x {image.shape[1]}, not {side} x {side}")
        return image

    return Method(
        lambda batch: torch.stack([read(stem) for stem in batch.stems]),
        lambda pair: sha256_of_file(files[pair.stem]),
        (),
        lambda pair: files[pair.stem],
    )


def folder_names(methods: Mapping[str, Method]) -> dict[str, str]:
    """Return method -> a folder's name of letters, digits and `.+-_`, distinct also where case is ignored."""
    names: dict[str, str] = {}
    for method in methods:
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", method).strip("._") or "method"
        if name.lower() in {taken.lower() for taken in names.values()}:
            name = f"{name}_{sha256_of_values(method)[:8]}"
        names[method] = name
    return names
