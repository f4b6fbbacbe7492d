"""The model card of an export: what the model is, what it was scored, what it cannot do."""

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.evaluation.tables import markdown_table
from lafr.models.restorer import Restorer
from lafr.provenance import training_set_in_words

CARD = "README.md"
ROW = "LAFR"  # in a result: the model itself; other rows are inputs, controls and ceilings
MINI_LICENCE = "cc-by-nc-sa-4.0"
MINI_DATA = """1,444 faces: `congress`, official portraits (public domain), and `omi`, StyleGAN2 faces of the One
Million Impressions set (CC BY-NC-SA 4.0)."""

PIPELINE = """```python
from lafr import LAFRPipeline
from PIL import Image

pipe = LAFRPipeline.from_pretrained("FOLDER")  # or OWNER/NAME on the hub
restored = pipe(Image.open("aligned_face.png")).images[0]
```

diffusers' own loader needs this folder on the disk and `lafr` installed:

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline="FOLDER", trust_remote_code=True)
```"""

TEXT = """---
{metadata}
---
# {name}

Restores aligned faces by latent alignment: frozen encoder, adapter, one step of a pruned diffusion UNet, frozen
decoder. Made with LAFR, an open implementation of *LAFR: Efficient Diffusion-based Blind Face Restoration via Latent
Codebook Alignment Adapter* (Li, Chen, Zhang, Timofte, arXiv 2505.23462); these are not the authors' weights.

{usage}

{facts}

## Training data

{training_data}

## Evaluation

{evaluation}

## Limits

Faces in FFHQ's alignment, square, {resolution} px; the whole photo is not restored. Restoration invents detail: never
use it to identify anyone. Faces unlike those of the training data are restored worse.{trained_with}

## Licence

{licence}
"""


def model_card(
    restorer: Restorer,
    full: bool = False,
    results: Sequence[dict] = (),
    licence: str | None = None,
    training_data: str | None = None,
    usage: str = PIPELINE,
) -> str:
    """Return the Markdown of a model's card, with the hub's metadata on top.

    Args:
        restorer: the model, its LoRA not merged yet.
        full: is everything in the folder, or a reference to the base?
        results: records of `scripts/eval.py` for this model; their row "LAFR" also goes into the metadata.
        licence: of the weights, by its name on the hub; the miniature's is known.
        training_data: what the model learned from; by the record in its folder where there is one, the miniature's is
            known.
        usage: Markdown on how to call it.
    """
    mini = restorer.base == "mini"
    licence = licence or (MINI_LICENCE if mini else None)
    name = f"LAFR, {restorer.resolution} px"
    metadata = ModelCardData(
        license=licence or "other",
        library_name="lafr",
        pipeline_tag="image-to-image",
        tags=["face-restoration", "one-step-diffusion", "codebook", "diffusers"],
        base_model=hub_name(restorer.base),
        model_name=name,
        eval_results=[score for record in results for score in scores(record)] or None,
    )
    kind, codes = restorer.adapter.kind, [len(layer.codebook) for layer in restorer.adapter.quantizer.layers]
    networks = ", ".join(sorted(restorer.trained_with))
    learned = restorer.training_set
    faces = f"{training_set_in_words(learned)}." if learned else "Not stated at the export."
    adapter = f"{kind} of {' + '.join(f'{n:,}' for n in codes)} codes" if codes else kind
    text = "deleted" if restorer.denoiser.text == "none" else restorer.denoiser.text
    partial = "what was trained, and a reference to the base model"
    facts = {
        "resolution": f"{restorer.resolution} px",
        "adapter": f"{adapter}, {restorer.adapter.size():,} values",
        "LoRA": lora_line(restorer, full),
        "denoiser": f"one step at t* = {restorer.denoiser.timestep}, cross-attention: {text}",
        "base model": f"`{restorer.base}`" if restorer.base else "inside this folder",
        "this folder holds": "everything" if full or restorer.base is None else partial,
    }
    return TEXT.format(
        metadata=metadata.to_yaml(),
        name=name,
        usage=usage,
        facts=markdown.table(["what", "value"], facts.items()),
        resolution=restorer.resolution,
        training_data=training_data or (MINI_DATA if mini and not learned else faces),
        evaluation="\n\n".join(map(section, results)) or "Not evaluated: no result was given at the export.",
        trained_with=f"\n\nIts losses used {networks}: a score by one of these is biased." if networks else "",
        licence=f"Weights: {licence}."
        if licence
        else "Not stated. The licences of the base model and of the training faces both apply.",
    )


def lora_line(restorer: Restorer, full: bool) -> str:
    """Return what there is of a LoRA."""
    config = restorer.denoiser.lora_config
    if config is None:
        return "none, or merged into the UNet"
    size = sum(p.numel() for p in restorer.denoiser.lora_parameters())
    return f"rank {config.r}, alpha {config.lora_alpha}, {size:,} values{', merged into the UNet' if full else ''}"


def read_results(paths: Sequence[str | Path]) -> list[dict]:
    """Return the records at `paths`; raises InputError for a file that `scripts/eval.py` did not write."""
    records = []
    for path in paths:
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            section(record), scores(record)
        except OSError as error:
            raise InputError(f"result {str(path)!r} cannot be read: {error.strerror}; give a JSON of eval.py") from None
        except (ValueError, KeyError, TypeError, AttributeError, StopIteration):
            raise InputError(f"{str(path)!r} is not a result of scripts/eval.py; give its result.json") from None
        records.append(record)
    return records


def section(record: dict) -> str:
    """Return a result's heading, table and what made it."""
    made = (
        f"Made by `{record['command']}`, seed {record['seed']}, {record['date']}, torch {record['versions']['torch']}, "
        f"diffusers {record['versions']['diffusers']}."
    )
    head = f"{record['benchmark']}, {record['images']} images; mean (95 % bootstrap interval over images)."
    return f"{head}\n\n{markdown_table(record)}\n\n{made}"


def scores(record: dict) -> list[EvalResult]:
    """Return the model's own row for the metadata; a metric that failed is left out."""
    return [
        EvalResult(
            task_type="image-to-image",
            dataset_type=record["benchmark"],
            dataset_name=record["benchmark"],
            metric_type=metric,
            metric_value=round(values["mean"], 6),
        )
        for metric, values in record["rows"][ROW].items()
        if values["mean"] is not None
    ]


def hub_name(base: str | None) -> str | None:
    """Return `OWNER/NAME` of a base model that came from the hub, else None."""
    return base.removeprefix("hub:").partition("@")[0] if base and base.startswith("hub:") else None
