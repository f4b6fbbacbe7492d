"""`lafr.json`, the index of a saved model, format 2: everything about it that is no tensor."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_type_hints

from lafr.errors import InputError
from lafr.models.schema import Positive, Range, read_object, require_fit
from lafr.storage import write_text

INDEX = "lafr.json"
FORMAT = 2
Timestep = Annotated[int, Range(0, 9999)]

# What the nested objects hold; an adapter's settings are those of its kind.
ADAPTER = {"kind": str, "settings": dict}
# ranges: far above any use, and small enough that no file can ask for absurd memory
LORA = {"rank": Annotated[int, Range(1, 1024)], "alpha": Positive, "targets": list[str]}
BASE_SETTINGS = {"expect": str | None, "variant": str | None}


@dataclass(frozen=True)
class Saved:
    """What `lafr.json` says.

    Attributes:
        resolution: side in pixels that the parts were trained at.
        timestep: t*.
        scale_input, text: see `lafr.models.denoiser.Denoiser`.
        adapter: `kind` and `settings` of `lafr.models.adapter.build_adapter`.
        lora: rank, alpha and targets; None without a LoRA, or when it was merged.
        fidelity: what a fidelity above 0 does, see `Restorer`; "scale_lora", of earlier models, is read as blending.
        decoder: "base", the base model's own, or "tiny", whose weights lie in the folder `tiny`.
        base: what finds the base model again; None when the folder holds everything.
        base_settings: of `Base.from_pretrained`, to repeat with `base`.
        trained_with: origins of the pretrained networks used by its losses.
        base_mark: of the base's weights, see `lafr.models.base.model.Base.mark`; None, and not in the file, of the
            miniature's base, which is shipped, and of models that were saved before there were marks.
    """

    resolution: Annotated[int, Range(8, 8192)]
    timestep: Timestep
    scale_input: bool
    text: Literal["none", "empty_prompt"]
    adapter: dict
    lora: dict | None
    fidelity: Literal["blend_latents", "scale_lora"]
    decoder: Literal["base", "tiny"]
    base: str | None
    base_settings: dict
    trained_with: list[str]
    base_mark: str | None = None

    hints: ClassVar[Mapping[str, Any]]

    def write(self, folder: Path) -> None:
        """Write the index, last of all files: a folder without it is no model."""
        record = {"format": FORMAT} | asdict(self)
        if self.base_mark is None:
            del record["base_mark"]
        write_text(folder / INDEX, json.dumps(record, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the index of a saved model.

        Raises InputError, on one line, when there is none, when it is of another format, and for a missing or unknown
        key, another type, or a value out of range.
        """
        path = folder / INDEX
        if not path.is_file():
            raise InputError(f"{str(folder)!r} holds no {INDEX}; give the folder of a trained model, or 'mini'")
        # of limited size and depth: a hostile file costs no memory
        where, record = repr(str(path)), read_object(path)
        # before the keys: an older format has others, and its message says what to do
        require_format(record.pop("format", None), where)
        record = {"base_mark": None} | record
        require_fit(record, cls.hints, where)
        require_fit(record["adapter"], ADAPTER, f"adapter in {where}")
        require_fit(record["base_settings"], BASE_SETTINGS, f"base_settings in {where}")
        if record["lora"] is not None:
            require_fit(record["lora"], LORA, f"lora in {where}")
        return cls(**record)


# annotations as types, not as strings; the class variable itself is no key of the file
Saved.hints = {name: hint for name, hint in get_type_hints(Saved, include_extras=True).items() if name != "hints"}


def require_format(found: object, where: str) -> None:
    """Raise InputError unless a saved model is of this version's format."""
    # in Python 2.0 == 2, and JSON can hold either
    if found == FORMAT and not isinstance(found, bool | float):
        return
    # format 1 named a Python path to import: it is not read, as loading must run no code
    if found is None or found == 1:
        raise InputError(
            f"{where} was saved by an earlier version of LAFR (format {found or 'not stated'}; this one reads "
            f"{FORMAT}); train it again with this version, or use it with the version that saved it"
        )
    raise InputError(f"{where} has format {found!r:.40}; this version reads {FORMAT}: install a newer LAFR")
