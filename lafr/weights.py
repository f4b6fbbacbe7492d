"""Every external file: where it comes from, its sha256 and licence, and where it is looked for."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from lafr.errors import InputError

FOLDER_VARIABLE = "LAFR_WEIGHTS"  # a folder that is searched first: for machines without a network


@dataclass(frozen=True)
class ExternalFile:
    """A file that LAFR reads and does not ship."""

    package: str  # the installed package that carries it
    path: str  # inside that package
    sha256: str
    source: str
    licence: str
    remedy: str


EXTERNAL = {
    f"st_lpips_{trunk}": ExternalFile(
        package="stlpips_pytorch",
        path=f"weights/vST0.0/{trunk}_shift_tolerant.pth",
        sha256=sha256,
        source="PyPI stlpips-pytorch 0.0.2 (Ghildyal & Liu, ECCV 2022)",
        licence="BSD-2-Clause (the weights; the package's own modules, partly CC BY-NC-SA 4.0, are never imported)",
        remedy="pip install --no-deps stlpips-pytorch==0.0.2",
    )
    for trunk, sha256 in {
        "alex": "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
        "vgg": "44597da68f49c1837c100ff52299050f274d102eb102e5837178c79be6f0e250",
    }.items()
} | {
    "astronaut": ExternalFile(
        package="skimage",
        path="data/astronaut.png",
        sha256="88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        source="PyPI scikit-image; NASA portrait of Eileen Collins",
        licence="public domain",
        remedy="pip install scikit-image",
    ),
    "insightface_t1": ExternalFile(
        package="insightface",
        path="data/images/t1.jpg",
        sha256="47f682e945b659f93a9e490b9c9c4a2a864abe64dace9e1a2893845ddfd69489",
        source="PyPI insightface",
        licence="copyrighted still: read in place, never copied or shown",
        remedy="pip install --no-deps insightface==2.1",
    ),
}


def locate(name: str) -> Path:
    """Return the path of an external file whose sha256 matches.

    Looked for in the folder named by the environment variable LAFR_WEIGHTS, then in the package that carries it
    (which is found, not imported). Raises InputError with the remedy when it is absent or altered.
    """
    file = EXTERNAL[name]
    found = [path for path in _candidates(file) if path.is_file()]
    if not found:
        raise InputError(f"{name} is missing: {file.remedy} (or put {Path(file.path).name} into ${FOLDER_VARIABLE})")
    if sha256(found[0]) != file.sha256:
        raise InputError(f"{str(found[0])!r} is not the known {name}: its sha256 differs; {file.remedy}")
    return found[0]


def _candidates(file: ExternalFile) -> list[Path]:
    folders = [Path(folder) for folder in [os.environ.get(FOLDER_VARIABLE)] if folder]
    spec = importlib.util.find_spec(file.package)
    inside = [Path(place) / file.path for place in (spec.submodule_search_locations or [])] if spec else []
    return [folder / Path(file.path).name for folder in folders] + inside


@cache
def sha256(path: str | Path) -> str:
    """Return the hex sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_pickle(name: str) -> dict[str, Tensor]:
    """Return the state dict of a third-party pickle, after its sha256 and with `weights_only`."""
    return torch.load(locate(name), map_location="cpu", weights_only=True)


def mini_folder() -> Path:
    """Return the folder of the shipped miniature, in a checkout or inside an installed wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "data" / "mini", package / "_data" / "mini"):
        if folder.is_dir():
            return folder
    raise InputError("the miniature's weights (data/mini) are missing; clone the project again or reinstall lafr")
