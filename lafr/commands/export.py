"""Export a model: `python scripts/export.py model.folder=FOLDER output=FOLDER format=diffusers|onnx [full=true]`."""

import sys

from lafr.commands.launch import run

FORMATS = ("diffusers", "onnx")


def main(cfg) -> None:
    """Write the export, all or nothing, and say where it lies and how to use it."""
    from lafr.errors import InputError

    if cfg.format not in FORMATS:
        raise InputError(f"format={cfg.format} is unknown; choose one of {', '.join(FORMATS)}")
    write = to_onnx if cfg.format == "onnx" else to_diffusers
    card = dict(results=list(cfg.results), licence=cfg.licence, training_data=cfg.training_data)
    print(write(cfg, str(cfg.output), card))


def to_diffusers(cfg, output: str, card: dict) -> str:
    """Write the pipeline's folder and return how to use it."""
    from lafr.export.pipeline import LAFRPipeline

    LAFRPipeline.from_pretrained(str(cfg.model.folder)).save_pretrained(output, full=cfg.full, **card)
    return f"wrote {output}; use: lafr.LAFRPipeline.from_pretrained({output!r})(image).images[0]"


def to_onnx(cfg, output: str, card: dict) -> str:
    """Write the graph's folder and return how far it is from PyTorch and how to use it."""
    from lafr.export.onnx import GRAPH, save_onnx
    from lafr.models.restorer import Restorer

    def said(step: str) -> None:
        print(f"export: {step}", file=sys.stderr)

    difference = save_onnx(Restorer.from_pretrained(str(cfg.model.folder)), output, **card, said=said)
    return (
        f"wrote {output}/{GRAPH}, within {difference:.1e} of PyTorch on random images; "
        f"{output}/README.md shows how to call it"
    )


def command() -> None:
    """Run the command line."""
    run(main, "export")


if __name__ == "__main__":
    command()
