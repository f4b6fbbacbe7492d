"""Prepare a set: `lafr prepare dataset=NAME source=...`; or show a degradation recipe: `output=FOLDER`."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from lafr.commands.doors import as_typed
from lafr.commands.launch import run, typed_arguments
from lafr.errors import require_whole

PLACES = ("source", "source_hq", "only", "output")


def public_command(arguments: Sequence[str]) -> str:
    """Return the command for an index, without this machine's folders and without the secrets of an address."""
    from lafr.preparation.downloads import is_address, public

    def short(argument: str) -> str:
        key, _, value = argument.partition("=")
        if key not in PLACES or not (is_address(value) or Path(value).is_absolute()):
            return argument
        return f"{key}={public(value) if is_address(value) else Path(value).name}"

    return as_typed(map(short, arguments))


def sheet(cfg: DictConfig) -> None:
    """Write a face's degraded copies `lq/NAME_KK.png`, the drawn parameters as JSON, and a contact sheet."""
    import numpy as np
    from hydra.utils import instantiate

    from lafr.data.degradation.operators import apply
    from lafr.data.packaged import ASTRONAUT, PackagedFaces
    from lafr.images import read_image, write_image
    from lafr.preparation.sheet import contact_sheet
    from lafr.storage import write_json

    require_whole(1, resolution=cfg.resolution, draws=cfg.draws)
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
    print(f"wrote {cfg.draws} degraded copies into {output / 'lq'}, their parameters into {name}_draws.json,")
    print(f"and all of them into {output / f'{name}_sheet.png'}")


def main(cfg: DictConfig) -> None:
    """Prepare the dataset that is named; without one, write a face's degraded copies."""
    if cfg.get("dataset") is None:
        sheet(cfg)
        return
    from hydra.utils import instantiate

    from lafr.provenance import provenance

    prepare = instantiate(cfg.dataset, _convert_="all")
    print(prepare(output=str(cfg.output), made_by=provenance(public_command(typed_arguments()), cfg.seed)))


def command() -> None:
    """Run the command line."""
    run(main, "prepare_data")


if __name__ == "__main__":
    command()
