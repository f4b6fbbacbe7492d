"""LAFR: Latent Alignment for Face Restoration (arXiv 2505.23462). Listing the package tells the method in order."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lafr.data.degradation.first_order import Degradation
    from lafr.data.stream import PairStream
    from lafr.errors import InputError
    from lafr.export.onnx import save_onnx
    from lafr.export.pipeline import LAFRPipeline
    from lafr.images import read_image, write_image
    from lafr.models.restorer import Restorer
    from lafr.photos.restorer import PhotoRestorer
    from lafr.photos.restoring import restore_files

__version__ = "0.2.0"

__all__ = [
    "Degradation",
    "InputError",
    "LAFRPipeline",
    "PairStream",
    "PhotoRestorer",
    "Restorer",
    "read_image",
    "restore_files",
    "save_onnx",
    "write_image",
]

# Imported on first use: `import lafr` loads neither torch nor diffusers.
_MODULES = {
    "Degradation": "lafr.data.degradation.first_order",
    "InputError": "lafr.errors",
    "LAFRPipeline": "lafr.export.pipeline",
    "PairStream": "lafr.data.stream",
    "PhotoRestorer": "lafr.photos.restorer",
    "Restorer": "lafr.models.restorer",
    "read_image": "lafr.images",
    "restore_files": "lafr.photos.restoring",
    "save_onnx": "lafr.export.onnx",
    "write_image": "lafr.images",
}


def __getattr__(name: str) -> object:
    """Return a public name, importing its module."""
    if name not in _MODULES:
        raise AttributeError(f"module 'lafr' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
