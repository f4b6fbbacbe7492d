"""BasicSR 1.4.2's degradations, to compare with: read from its source package, never installed, no code of it here."""

import hashlib
import sys
import tarfile
import types
from pathlib import Path

import numpy as np

SOURCE = "basicsr-1.4.2.tar.gz"
SHA256 = "b89b595a87ef964cda9913b4d99380ddb6554c965577c0c10cb7b78e31301e87"
FOLDER = Path(sys.prefix) / "reference"
FETCH = (
    "pip download --no-deps --no-build-isolation --no-binary :all: basicsr==1.4.2 -d "
    f"{FOLDER.parent.name}/{FOLDER.name}  (make does it)"
)


def basicsr_module(path: str) -> types.ModuleType | None:
    """Return one module of BasicSR that imports none of the others, such as "data/degradations.py".

    None where the source package is not at hand; ValueError where its sha256 is not the known one.
    """
    archive = FOLDER / SOURCE
    if not archive.is_file():
        return None
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        raise ValueError(f"{archive} is not the known {SOURCE}; delete it and run make again")
    with tarfile.open(archive) as tar:
        member = tar.extractfile(f"basicsr-1.4.2/basicsr/{path}")
        assert member is not None, "the archive with this sha256 has the file"
        code = member.read()
    from torchvision.transforms import functional

    # torchvision renamed the module that BasicSR imports one function from
    old = types.ModuleType("torchvision.transforms.functional_tensor")
    vars(old)["rgb_to_grayscale"] = functional.rgb_to_grayscale
    sys.modules.setdefault(old.__name__, old)
    module = types.ModuleType(f"basicsr_{Path(path).stem}")
    with np.errstate():  # the module silences NumPy's warnings for everybody
        exec(compile(code, path, "exec"), module.__dict__)
    return module
