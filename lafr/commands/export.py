"""Export a model: `lafr export model.folder=FOLDER output=FOLDER format=diffusers|onnx [full=true]`."""

import sys
from pathlib import Path

from omegaconf import DictConfig

from lafr.commands.launch import run
from lafr.errors import InputError

FORMATS = ("diffusers", "onnx")


def main(cfg: DictConfig) -> None:
    """Write the export atomically, and print where it is and how to use it."""
    if cfg.format not in FORMATS:
        raise InputError("format", cfg.format, f"one of {', '.join(FORMATS)}")
    from lafr.export.model_card import read_results
    from lafr.export.onnx import require_packages
    from lafr.export.pipeline import require_free

    # before the model, which takes longer: what is missing or in the way is said at once
    if cfg.format == "onnx":
        require_packages()
    require_free(Path(cfg.output))
    read_results(list(cfg.results))
    print(f"loading {cfg.model.folder} ...", file=sys.stderr, flush=True)
    write = to_onnx if cfg.format == "onnx" else to_diffusers
    card = dict(results=list(cfg.results), licence=cfg.licence, training_data=cfg.training_data)
    print(write(cfg, str(cfg.output), card))


def to_diffusers(cfg: DictConfig, output: str, card: dict) -> str:
    """Write the pipeline's folder and return how to use it."""
    from lafr.export.pipeline import LAFRPipeline

    pipe = LAFRPipeline.from_pretrained(str(cfg.model.folder), base=cfg.base, decoder=cfg.decoder)
    pipe.save_pretrained(output, full=cfg.full, **card)
    return f"wrote {output}; use: lafr.LAFRPipeline.from_pretrained({output!r})(image).images[0]"


def to_onnx(cfg: DictConfig, output: str, card: dict) -> str:
    """Write the graph's folder and return its difference from PyTorch and how to use it."""
    from lafr.export.onnx import GRAPH, save_onnx
    from lafr.models.restorer import Restorer

    def said(step: str) -> None:
        print(f"export: {step}", file=sys.stderr, flush=True)

    restorer = Restorer.from_pretrained(str(cfg.model.folder), cfg.base, decoder=cfg.decoder)
    difference = save_onnx(restorer, output, **card, said=said)
    return (
        f"wrote {output}/{GRAPH}, within {difference:.1e} of PyTorch on random images; "
        f"{output}/README.md shows how to call it"
    )


def command() -> None:
    """Run the command line."""
    run(main, "export")


if __name__ == "__main__":
    command()
