"""Contact sheets: one face under many samples of a degradation, with captions; the images of a dataset."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lafr.data.degradation.operators import Record
from lafr.images import read_pil, to_pil

TILE, LINE, MARGIN, COLUMNS = 256, 15, 6, 5  # pixels; tiles in a row


def describe(step: dict) -> str:
    """Return one step in a few words, with units."""
    match step:
        case {"op": "blur_down" | "blur", "kernel": kernel}:
            return ", ".join([_kernel(kernel), *([f"down {step['factor']:.1f}"] if "factor" in step else [])])
        case {"op": "resize"}:
            return f"{step['mode']} to {step['width']} px"
        case {"op": "gaussian_noise"}:
            return f"{'gray ' if step.get('gray') else ''}noise {step['sigma']:.1f}/255"
        case {"op": "poisson_noise"}:
            return f"{'gray ' if step['gray'] else ''}shot noise x{step['scale']:.2f}"
        case {"op": "jpeg"}:
            return f"JPEG {step['quality']}"
        case {"op": "colour_shift"}:
            return "colour " + " ".join(f"{value:+.0f}" for value in step["shift"])
        case {"op": "colour_jitter"}:
            return ", ".join(f"{name} {factor:.2f}" for name, factor in step["changes"])
    return step["op"]


def _kernel(kernel: dict) -> str:
    if kernel["family"] == "sinc":
        return f"sinc {kernel['cutoff']:.2f} rad"
    x, y = kernel["sigma_x"], kernel["sigma_y"]
    size = f"{x:.1f} px" if x == y else f"{x:.1f} x {y:.1f} px"
    beta = f" {kernel['family']} {kernel['beta']:.1f}" if "beta" in kernel else ""
    return f"blur {size}{beta}"


def caption(record: Record, width: int = 40) -> list[str]:
    """Return a record's steps in lines of at most `width` characters; a number and its unit stay on one line.

    The final resize to the face's own size is left out.
    """
    back = max(place for place, step in enumerate(record) if step["op"] == "resize")
    together = "\N{NO-BREAK SPACE}"
    words = [describe(step).replace(" ", together) for step in [*record[:back], *record[back + 1 :]]]
    lines = textwrap.wrap(", ".join(words).replace(f",{together}", ", "), width)
    return [line.replace(together, " ") for line in lines]  # the font has no glyph for it


def contact_sheet(hq: Tensor, lq: Sequence[Tensor], records: Sequence[Record], name: str) -> Image.Image:
    """Return the face `hq [3, H, W]` and its degraded copies in a grid, each over a caption.

    Tiles are 256 px.
    """
    captions = [[name, "as it is"]]
    for number, record in enumerate(records):
        captions.append([f"draw {number}", *caption(record)])
    lines = max(len(words) for words in captions)
    columns = min(COLUMNS, len(captions))
    step_x, step_y = TILE + 2 * MARGIN, TILE + LINE * lines + 3 * MARGIN
    rows = -(-len(captions) // columns)
    sheet = Image.new("RGB", (columns * step_x, rows * step_y), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (image, words) in enumerate(zip([hq, *lq], captions, strict=True)):
        x, y = number % columns * step_x + MARGIN, number // columns * step_y + MARGIN
        sheet.paste(to_pil(image).resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        for row, line in enumerate(words):
            draw.text((x, y + TILE + 3 + row * LINE), line, "black" if row == 0 else "dimgray", font)
    return sheet


def set_sheet(files: Sequence[Mapping], folder: Path, most: int = 24, side: int = 128, columns: int = 8) -> Image.Image:
    """Return up to `most` images spread over a set, `side` px each; HQ stands under LQ.

    Args:
        files: `file` in `folder`, `part` (lq, hq or another), and of an LQ image that has one the `reference`.
        folder: of the set.
        most: images shown.
        side: of each, in pixels.
        columns: images in a row.
    """
    shown = [file for file in files if file["part"] != "hq"]
    shown = [shown[i] for i in np.linspace(0, len(shown) - 1, min(most, len(shown))).astype(int)]
    stacks = [[file["file"], *([file["reference"]] if "reference" in file else [])] for file in shown]
    rows, columns, high = -(-len(stacks) // columns), min(columns, len(stacks)), len(stacks[0])
    sheet = Image.new("RGB", (columns * side, rows * high * side), "white")
    for i, stack in enumerate(stacks):
        for k, file in enumerate(stack):
            small = read_pil(folder / file).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (i % columns * side, (i // columns * high + k) * side))
    return sheet
