"""Prepare a set: `python scripts/prepare_data.py dataset=NAME source=...`; or look at a recipe: `output=FOLDER`."""

import shlex
import sys
from pathlib import Path

from lafr.commands.launch import run

PLACES = ("source", "source_hq", "only", "output")
ARGUMENTS = sys.argv[1:]


def told(arguments) -> str:
    """Return the command for an index: without this machine's folders, and what addresses may hold of secrets."""
    from lafr.preparation.downloads import is_address, public

    def short(argument: str) -> str:
        key, _, value = argument.partition("=")
        if key not in PLACES or not (is_address(value) or Path(value).is_absolute()):
            return argument
        return f"{key}={public(value) if is_address(value) else Path(value).name}"

    return shlex.join(["python", "scripts/prepare_data.py", *map(short, arguments)])


def sheet(cfg) -> None:
    """Write `lq/NAME_KK.png` for each draw, what was drawn, and the contact sheet of all."""
    import numpy as np
    from hydra.utils import instantiate

    from lafr.data.degradation.operators import apply
    from lafr.data.packaged import ASTRONAUT, PackagedFaces
    from lafr.images import read_image, write_image
    from lafr.preparation.sheet import contact_sheet
    from lafr.storage import write_json

    degradation = instantiate(cfg.degradation, _convert_="all")
    if cfg.input is None:
        name, hq = ASTRONAUT[0], PackagedFaces(cfg.resolution, ASTRONAUT)[0]
    else:
        name, hq = Path(str(cfg.input)).stem, read_image(str(cfg.input), cfg.resolution)
    records = [degradation.draw(*hq.shape[-2:], np.random.default_rng([cfg.seed, k])) for k in range(cfg.draws)]
    copies = [apply(record, hq) for record in records]
    output = Path(str(cfg.output))
    for k, lq in enumerate(copies):
        write_image(lq, output / "lq" / f"{name}_{k:02d}.png")
    write_json(records, output / f"{name}_draws.json")
    write_image(contact_sheet(hq, copies, records, name), output / f"{name}_sheet.png")
    print(
        f"wrote {cfg.draws} degraded copies into {output / 'lq'}, what was drawn into {output / f'{name}_draws.json'}"
    )
    print(f"look at {output / f'{name}_sheet.png'}")


def main(cfg) -> None:
    """Prepare the dataset that is named; without one, write a face's degraded copies."""
    if cfg.get("dataset") is None:
        sheet(cfg)
        return
    from hydra.utils import instantiate

    from lafr.provenance import provenance

    prepare = instantiate(cfg.dataset, _convert_="all")
    print(prepare(output=str(cfg.output), made_by=provenance(told(ARGUMENTS), cfg.seed)))


def command() -> None:
    """Run the command line."""
    run(main, "prepare_data")


if __name__ == "__main__":
    command()
