"""Write degraded copies of an aligned face: `python scripts/prepare_data.py output=FOLDER [input=FILE]`."""

from pathlib import Path

from command import run


def main(cfg) -> None:
    """Write `NAME_KK_lq.png` for each draw and the contact sheet `NAME_sheet.png` (the face, then its draws)."""
    import numpy as np
    import torch
    from hydra.utils import instantiate

    from lafr.data.packaged import ASTRONAUT, PackagedFaces
    from lafr.images import read_image, write_image

    degradation = instantiate(cfg.degradation, _convert_="all")
    if cfg.input is None:
        name, hq = ASTRONAUT[0], PackagedFaces(cfg.resolution, ASTRONAUT)[0]
    else:
        name, hq = Path(str(cfg.input)).stem, read_image(str(cfg.input), cfg.resolution)
    draws = [degradation(hq, np.random.default_rng([cfg.seed, k])) for k in range(cfg.draws)]
    output = Path(str(cfg.output))
    for k, lq in enumerate(draws):
        write_image(lq, output / "lq" / f"{name}_{k:02d}.png")
    write_image(torch.cat([hq, *draws], dim=2), output / f"{name}_sheet.png")
    print(f"wrote {cfg.draws} degraded copies into {output / 'lq'}, all in {output / f'{name}_sheet.png'}")


if __name__ == "__main__":
    run(main, "prepare_data")
