"""What is compared: each row of a table says how its pictures come from LQ and HQ, and what they hang on."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lafr.errors import InputError
from lafr.evaluation.cache_keys import of_restorer
from lafr.images import read_image
from lafr.storage import sha256_of_file, sha256_of_values

LQ, HQ, SHOWN, CEILING = "LQ input", "HQ", "LAFR", "codec(HQ)"


@dataclass(frozen=True)
class Batch:
    """Test images that are restored together: `lq` and, where there is a ground truth, `hq`, `[B, 3, R, R]`."""

    number: int
    pairs: list
    lq: Tensor
    hq: Tensor | None

    @property
    def stems(self) -> list[str]:
        """Their names."""
        return [pair.stem for pair in self.pairs]


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Args:
        make: maps a batch to its pictures `[B, 3, R, R]` in [-1, 1], not rounded.
        made_by: maps a pair to a hash of what, beside the pair, its picture hangs on; None: it is always made anew.
        of: the sides of the pair that it hangs on.
        source: maps a pair to a file that may hold just this picture: it is copied where it does.
    """

    make: Callable[[Batch], Tensor]
    made_by: Callable[[object], str | None] = lambda pair: None
    of: tuple[str, ...] = ("lq", "hq")
    source: Callable[[object], Path | None] = lambda pair: None

    @property
    def needs_hq(self) -> bool:
        """Whether there is no picture without a ground truth."""
        return self.of == ("hq",)


def of_function(restore: Callable[[Tensor, Tensor | None], Tensor], identity: str | None = None, **settings) -> Row:
    """Return the row of a function of (lq, hq); without an identity its pictures are always made anew."""
    return Row(lambda batch: restore(batch.lq, batch.hq), lambda pair: identity, **settings)


def standard_rows(
    restorer, controls: Mapping[str, Callable[[Tensor], Tensor]], fidelity: float = 0.0
) -> dict[str, Row]:
    """Return what is compared: the input, the codec on both sides (its HQ side is the ceiling), the parts, LAFR.

    `fidelity` is LAFR's; the controls restore as they were trained.
    """
    codec, made_by = restorer.codec, of_restorer(restorer)

    def row(name: str, restore: Callable[[Tensor, Tensor | None], Tensor], side: str = "lq") -> dict[str, Row]:
        return {name: of_function(restore, sha256_of_values(made_by, name), of=(side,))}

    return {
        **input_row(),
        **row("codec(LQ)", lambda lq, hq: codec.reconstruct(lq)),
        **row("adapter only", lambda lq, hq: codec.decode(restorer.adapter(codec.encode(lq)))),
        **{name: control_row(control) for name, control in controls.items()},
        SHOWN: at_fidelity(restorer, fidelity, made_by),
        **row(CEILING, lambda lq, hq: codec.reconstruct(hq), side="hq"),
    }


def input_row() -> dict[str, Row]:
    """Return the row of the input itself."""
    return {LQ: Row(lambda batch: batch.lq, lambda pair: "lq", ("lq",), lambda pair: pair.lq_path)}


def truth_row() -> dict[str, Row]:
    """Return the ground truth, as a row that is not scored."""
    return {HQ: Row(lambda batch: batch.hq, lambda pair: "hq", ("hq",), lambda pair: pair.hq_path)}


def control_row(control: Callable[[Tensor], Tensor]) -> Row:
    """Return the row of another restorer, or of any function of LQ: that one's pictures are always made anew."""
    identity = of_restorer(control) if hasattr(control, "denoiser") else None
    return of_function(lambda lq, hq: control(lq), identity, of=("lq",))


def at_fidelity(restorer, fidelity: float, made_by: str | None = None) -> Row:
    """Return LAFR's row at a fidelity."""
    made_by = sha256_of_values(made_by or of_restorer(restorer), float(fidelity))
    return of_function(
        lambda lq, hq: restorer(lq, fidelity=fidelity) if fidelity else restorer(lq), made_by, of=("lq",)
    )


def output_row(files: Mapping[str, Path], side: int) -> Row:
    """Return the row of pictures that another method made: stem -> file, `side` pixels wide and high."""

    def read(stem: str) -> Tensor:
        image = read_image(files[stem])
        if image.shape[1:] != (side, side):
            raise InputError(f"{str(files[stem])!r} is {image.shape[2]} x {image.shape[1]}, not {side} x {side}")
        return image

    return Row(
        lambda batch: torch.stack([read(stem) for stem in batch.stems]),
        lambda pair: sha256_of_file(files[pair.stem]),
        (),
        lambda pair: files[pair.stem],
    )


def folders(rows: Mapping[str, Row]) -> dict[str, str]:
    """Return row -> a folder's name of plain letters, digits and `.+-_`, distinct even where case is not."""
    names: dict[str, str] = {}
    for row in rows:
        name = re.sub(r"[^A-Za-z0-9.+-]+", "_", row).strip("._") or "row"
        if name.lower() in {taken.lower() for taken in names.values()}:
            name = f"{name}_{sha256_of_values(row)[:8]}"
        names[row] = name
    return names
