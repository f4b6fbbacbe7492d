"""What lets diffusers' generic `DiffusionPipeline.from_pretrained` load an export: `pipeline.py` and a component.

diffusers imports `pipeline.py` from the export (`custom_pipeline`), reads the components from `model_index.json` and
calls `from_pretrained(folder, torch_dtype=...)` of each. An export names one component, the whole restorer.
"""

from pathlib import Path

import diffusers
import torch
from diffusers import ModelMixin  # diffusers looks its base classes up in the module of a component

from lafr.models.restorer import Restorer
from lafr.storage import write_json, write_text

PIPELINE = '''"""LAFR's pipeline for `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, ...)`."""

from lafr.export.pipeline import LAFRPipeline

__all__ = ["LAFRPipeline"]
'''


class SavedRestorer(ModelMixin):
    """Loads the component "restorer" of an export."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, torch_dtype: torch.dtype | None = None, **_: object) -> Restorer:
        """Return the restorer of an export, VAE and UNet in `torch_dtype`; diffusers' further options are ignored."""
        restorer = Restorer.from_pretrained(folder)
        if torch_dtype is not None:  # the adapter stays in float32: see `LAFRPipeline`
            restorer.codec.vae.to(torch_dtype)
            restorer.denoiser.unet.to(torch_dtype)
            if restorer.codec.tiny is not None:
                restorer.codec.tiny.to(torch_dtype)
        return restorer


def write_index(folder: Path) -> None:
    """Write `model_index.json` and `pipeline.py`."""
    index = {
        "_class_name": "LAFRPipeline",
        "_diffusers_version": diffusers.__version__,
        "restorer": [SavedRestorer.__module__, SavedRestorer.__name__],
    }
    write_json(index, folder / "model_index.json")
    write_text(folder / "pipeline.py", PIPELINE)
