"""Test sets: the same pixels every time, pairs matched by file stem."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor

from lafr.data.degradation.operators import Degrade, degraded
from lafr.data.faces import Faces, read_list
from lafr.data.faces.sources import FaceSet, number_of
from lafr.errors import InputError, require_whole, setting
from lafr.images import list_images, read_image, unicode_twins
from lafr.storage import read_sealed


def require_different(benchmark: str, names: Sequence[str]) -> None:
    """Raise InputError where two images share a name, by which results are stored."""
    # results, restored images and caches are named by stem
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"benchmark {benchmark}: several images are named {repeated[0]!r}; rename them")


class MissingSetError(InputError):
    """A test set is not on this machine."""


@dataclass(frozen=True)
class Pair:
    """One test image: `lq` and, where there is a ground truth, `hq`, `[3, R, R]` in [-1, 1].

    `lq_path` and `hq_path` are the files that they were read from, if any.
    """

    stem: str
    lq: Tensor
    hq: Tensor | None
    lq_path: Path | None = None
    hq_path: Path | None = None


class Benchmark(Protocol):
    """A test set: named, each of its images too."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Pair: ...

    def stem(self, index: int) -> str:
        """Return the name of image `index`."""


def own_generator(seed: int, name: str, *numbers: int) -> np.random.Generator:
    """Return the generator of one sample of an image, by its name and further numbers; no other image moves it."""
    return np.random.default_rng([seed, number_of(name), *numbers])


class SyntheticBenchmark:
    """HQ faces, each degraded `draws` times with fixed random parameters.

    Degradation k of a face is drawn by the generator (seed, crc32 of the face's name, k): it does not depend on what
    else is in the set.
    """

    def __init__(
        self,
        name: str,
        faces: FaceSet,
        degradation: Degrade,
        draws: int = 1,
        seed: int = 0,
    ):
        require_different(name, [faces.name(i) for i in range(len(faces))])
        require_whole(1, draws=draws)
        self.name, self.faces, self.degradation, self.draws, self.seed = name, faces, degradation, draws, seed

    def __len__(self) -> int:
        return len(self.faces) * self.draws

    def stem(self, index: int) -> str:
        """Return the name of image `index`: the face's, with the number of the sample where there are several."""
        face, draw = divmod(index, self.draws)
        return f"{self.faces.name(face)}_{draw:02d}" if self.draws > 1 else self.faces.name(face)

    def __getitem__(self, index: int) -> Pair:
        face, draw = divmod(index, self.draws)
        name, hq = self.faces.name(face), self.faces[face]
        hq, lq = degraded(hq, self.degradation, own_generator(self.seed, name, draw))
        return Pair(self.stem(index), lq, hq)


def folder_benchmark(
    name: str,
    root: str | None,
    resolution: int,
    degradation: Degrade,
    file_list: str | None = None,
    count: int | None = None,
    remedy: str = "",
    seed: int = 0,
) -> SyntheticBenchmark:
    """Return a synthetic benchmark over the faces of `root` (those in `file_list`, if given).

    Raises InputError when the folder is missing or does not hold `count` images.
    """
    if root is None or not Path(root).is_dir():
        raise MissingSetError("root", root, f"the folder of benchmark {name}", remedy)
    paths = read_list(Path(root) / file_list, Path(root)) if file_list else list_images(root)
    if count is not None and len(paths) != count:
        raise InputError(f"benchmark {name} has {count} images, {root!r} holds {len(paths)}", remedy=remedy)
    faces = Faces(paths, resolution, memory_gb=0)  # each is read once: nothing to keep
    return SyntheticBenchmark(name, faces, degradation, seed=seed)


class PairedBenchmark:
    """A folder of LQ images and, optionally, one of HQ images, matched by stem.

    Args:
        name: as results print it.
        root: folder that holds both; `data/NAME` when None.
        resolution: side in pixels.
        lq: subfolder of the degraded images; without a ground truth they may lie in `root` itself.
        hq: subfolder of the ground truth; None when there is none.
        count: number of images the set must have.
        remedy: how to get it, for the error when it is missing.
    """

    def __init__(
        self,
        name: str,
        root: str | None,
        resolution: int,
        lq: str = "lq",
        hq: str | None = "hq",
        count: int | None = None,
        remedy: str = "",
    ):
        self.name, self.resolution = name, resolution
        self.root = Path(root or f"data/{name}")
        # real photos come as one folder of images, without lq/ and hq/
        if not hq and self.root.is_dir() and not (self.root / lq).is_dir():
            lq = "."
        for part in [lq, hq] if hq else [lq]:
            if not (self.root / part).is_dir():
                raise MissingSetError(
                    f"benchmark {name} is missing: {str(self.root / part)!r} does not exist", remedy=remedy
                )
        # a set made at another size would be resized silently, and its degradation with it
        side = prepared_side(self.root) or resolution
        if side != resolution:
            raise InputError(
                f"benchmark {name} in {str(self.root)!r} was made at {side} px, the model restores {resolution} px",
                remedy=f"give {setting('Restorer.folder')} of a model trained at {side} px",
            )
        self.lq = list_images(self.root / lq)
        if count is not None and len(self.lq) != count:
            held = f"{str(self.root / lq)!r} holds {len(self.lq)}"
            raise InputError(f"benchmark {name} has {count} images, {held}", remedy=remedy)
        require_different(name, [path.stem for path in self.lq])
        # as long as lq: one HQ image may serve several LQ images
        self.hq = match_by_stem(self.lq, list_images(self.root / hq)) if hq else None

    def __len__(self) -> int:
        return len(self.lq)

    def stem(self, index: int) -> str:
        """Return the name of image `index`."""
        return self.lq[index].stem

    def __getitem__(self, index: int) -> Pair:
        lq_path, hq_path = self.lq[index], self.hq[index] if self.hq else None
        hq = read_image(hq_path, self.resolution) if hq_path else None
        return Pair(lq_path.stem, read_image(lq_path, self.resolution), hq, lq_path, hq_path)


class PartialBenchmark:
    """Some pairs of a set, evenly spaced, for trials; its name says so: "celeba_test (24 of 3000)"."""

    def __init__(self, whole: Benchmark, count: int):
        places = np.linspace(0, len(whole) - 1, count).round().astype(int)
        self.whole, self.places = whole, [int(place) for place in places]
        self.name = f"{whole.name} ({count} of {len(whole)})"

    def __len__(self) -> int:
        return len(self.places)

    def stem(self, index: int) -> str:
        """Return the name of image `index`."""
        return self.whole.stem(self.places[index])

    def __getitem__(self, index: int) -> Pair:
        return self.whole[self.places[index]]


def pair_benchmark(name: str, lq: str | None, hq: str | None, resolution: int) -> PairedBenchmark:
    """Return any two folders as a set, `lq` alone where `hq` is None."""
    if lq is None:
        remedy = f"its ground truth, if there is one, is {setting('hq')}"
        raise MissingSetError("lq", lq, f"a folder of degraded faces for benchmark {name}", remedy)
    folder = Path(lq).absolute()
    # an absolute path replaces what it is joined to: hq may lie anywhere
    return PairedBenchmark(name, str(folder.parent), resolution, folder.name, hq and str(Path(hq).absolute()))


INDEX = "index.json"  # of a set that `lafr prepare` made: its settings, and a record of each file


def prepared_index(root: Path) -> dict | None:
    """Return the index of a set that `lafr prepare` made, None for other folders; DamagedError where it has changed."""
    path = root / INDEX
    # sets that were prepared by an earlier version carry no seal
    index = read_sealed(path, required=False) if path.is_file() else None
    return index if _is_ours(index) else None


def _is_ours(index: object) -> bool:
    """Return whether `index.json` is LAFR's: other programs write one of that name too."""
    if not isinstance(index, dict) or not isinstance(index.get("files"), list):
        return False
    settings = index.get("settings")
    return isinstance(settings, dict) and isinstance(settings.get("resolution"), int)


def prepared_side(root: Path) -> int | None:
    """Return the side in pixels of a set that `lafr prepare` made, None for other folders."""
    index = prepared_index(root)
    return index["settings"]["resolution"] if index is not None else None


def match_by_stem(images: Sequence[Path], references: Sequence[Path]) -> list[Path]:
    """Return the reference of each image: the same stem, or the stem before a suffix such as `_00`.

    Raises InputError naming images without a reference, references without an image, and two of one name.
    """
    by_stem: dict[str, Path] = {}
    for path in references:
        # the last one of "a.jpg" and "a.png" would be taken for the ground truth
        if (other := by_stem.setdefault(path.stem, path)) != path:
            raise InputError(f"{str(other)!r} and {str(path)!r} are both the reference {path.stem!r}; remove one")
    found, lost = [], []
    for image in images:
        # "face_03" is the fourth degradation of "face", unless a reference is called "face_03" itself
        stem, _, suffix = image.stem.rpartition("_")
        numbered = by_stem.get(stem) if suffix.isdigit() else None
        if reference := by_stem.get(image.stem) or numbered:
            found.append(reference)
        else:
            lost.append(image.name)
    # both sides are checked: an unused reference is as likely a wrong folder as a missing one
    unused = sorted(set(by_stem.values()) - set(found))
    if lost or unused:
        raise InputError(
            f"pairs do not match: {len(lost)} images without a reference {lost[:3]}, "
            f"{len(unused)} references without an image {[p.name for p in unused[:3]]}"
            f"{unicode_twins([Path(name).stem for name in lost], [path.stem for path in unused])}"
        )
    return found
