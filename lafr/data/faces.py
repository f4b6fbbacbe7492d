"""Folders of aligned faces, read once and kept as 8-bit pixels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from lafr.errors import InputError
from lafr.images import from_uint8, list_images, read_image, to_uint8


class Faces:
    """Aligned faces by index: `faces[i]` is `hq [3, resolution, resolution]` in [-1, 1].

    Each file is decoded and resized (Lanczos) once; the 8-bit result stays in memory (0.05 MB a face at 128 px,
    0.8 MB at 512 px).
    """

    def __init__(self, paths: Sequence[str | Path], resolution: int):
        self.paths = [Path(path) for path in paths]
        self.resolution = resolution
        self._pixels: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        if index not in self._pixels:
            self._pixels[index] = to_uint8(read_image(self.paths[index], self.resolution))
        return from_uint8(self._pixels[index])

    def name(self, index: int) -> str:
        """Return the stem of face `index`'s file."""
        return self.paths[index].stem


def train_and_validation(
    root: str,
    resolution: int,
    folders: Sequence[str] | None = None,
    validation_list: str | None = None,
    validation_fraction: float = 0.05,
    num_images: int | None = None,
    seed: int = 0,
    remedy: str = "give a folder of aligned faces, data.root=FOLDER, or data=packaged for a first look",
) -> tuple[Faces, Faces]:
    """Split the faces under `root` into a training and a validation set that share no file.

    Args:
        root: folder of aligned faces.
        resolution: side in pixels that every face is resized to.
        folders: subfolders to use; all of `root` when empty.
        validation_list: text file in `root`, one relative path a line; without it a seeded
            `validation_fraction` of the files (at least one) is held out.
        validation_fraction: share of the files held out when there is no list.
        num_images: size of the training subset, drawn by `seed` from the sorted names; all when None.
        seed: of the split and of the subset.
        remedy: how to get the faces, for the error when `root` is missing.
    """
    base = Path(root)
    if not base.is_dir():
        raise InputError(f"data.root={root!r} does not exist; {remedy}")
    paths = [path for folder in folders or ["."] for path in list_images(base / folder)]
    if validation_list:
        held_out = read_list(base / validation_list, base)
    else:
        if len(paths) < 2:
            raise InputError(f"data.root={root!r} holds one image; two are needed to hold one out")
        order = np.random.default_rng([seed, 1]).permutation(len(paths))
        held_out = [paths[i] for i in sorted(order[: max(1, round(validation_fraction * len(paths)))])]
    hidden = set(held_out)
    training = [path for path in paths if path not in hidden]
    if num_images is not None:
        if not 0 < num_images <= len(training):
            raise InputError(f"data.num_images={num_images}, but {root!r} has {len(training)} training images")
        drawn = np.random.default_rng(seed).choice(len(training), num_images, replace=False)
        training = [training[i] for i in sorted(drawn)]
    return Faces(training, resolution), Faces(held_out, resolution)


def read_list(path: Path, base: Path) -> list[Path]:
    """Return the files named in a list, one path relative to `base` a line."""
    if not path.is_file():
        raise InputError(f"list {str(path)!r} does not exist")
    listed = [base / line.strip() for line in path.read_text().splitlines() if line.strip()]
    missing = [str(p) for p in listed if not p.is_file()]
    if missing or not listed:
        raise InputError(f"list {str(path)!r} names {len(missing)} missing of {len(listed)} files, first {missing[:1]}")
    return listed
