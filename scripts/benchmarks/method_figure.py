"""Draw the method, `docs/method.svg`: `python -m scripts.benchmarks.method_figure`.

Frozen parts are gray rectangles, trained ones coloured with round ends and a second outline: told apart without colour.
Each box links to the file that holds it.
"""

from html import escape
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
TARGET = ROOT / "docs" / "method.svg"
REPOSITORY = ".."  # of the links: relative to docs/
HEIGHT, GAP, TOP, LEFT = 60, 74, 54, 62
FROZEN, TRAINED, INK = "#e8eaed", "#fde2b8", "#1f2328"


class Box(NamedTuple):
    """A part of the pipeline."""

    name: str
    detail: str
    file: str  # of the repository
    trained: bool
    width: int
    output: str  # what leaves it, written on its arrow


BOXES = (
    Box("VAE encoder", "frozen", "lafr/models/codec.py", False, 128, "z_lq"),
    Box("extractor", "codebook, alignment", "lafr/models/adapter.py", True, 154, ""),
    Box("codebook", "codebook stage", "lafr/models/quantizers.py", True, 124, ""),
    Box("mapper", "codebook stage", "lafr/models/adapter.py", True, 124, "z_aligned"),
    Box("UNet, one step", "frozen, LoRA trained", "lafr/models/denoiser.py", True, 160, "z_restored"),
    Box("VAE decoder", "frozen", "lafr/models/codec.py", False, 128, "restored"),
)


def drawn_box(box: Box, x: int) -> str:
    """Return a box as a link to its file."""
    radius, fill = (HEIGHT // 2, TRAINED) if box.trained else (0, FROZEN)
    shapes = [f'<rect x="{x}" y="{TOP}" width="{box.width}" height="{HEIGHT}" rx="{radius}" fill="{fill}"/>']
    if box.trained:
        inner = f'x="{x + 4}" y="{TOP + 4}" width="{box.width - 8}" height="{HEIGHT - 8}" rx="{radius - 4}"'
        shapes.append(f'<rect {inner} fill="none"/>')
    middle = x + box.width // 2
    words = (
        f'<text class="name" x="{middle}" y="{TOP + 27}">{escape(box.name)}</text>'
        f'<text x="{middle}" y="{TOP + 44}">{escape(box.detail)}</text>'
    )
    link = f"{REPOSITORY}/{box.file}"
    return f'<a href="{link}"><title>{escape(f"{box.name}: {box.file}")}</title>{"".join(shapes)}{words}</a>'


def drawn_arrow(start: int, end: int, label: str) -> str:
    """Return an arrow with the name of what it carries above it."""
    y = TOP + HEIGHT // 2
    line = f'<path d="M{start + 3} {y}H{end - 4}" marker-end="url(#head)"/>'
    middle = (start + end) // 2 + (4 if label == "z_aligned" else 0)  # clear of the adapter's frame
    return f'{line}<text class="tensor" x="{middle}" y="{y - 9}">{escape(label)}</text>'


def figure() -> str:
    """Return the figure as SVG."""
    parts, x = [drawn_arrow(8, LEFT, "lq")], LEFT
    spans = {}
    for box in BOXES:
        parts.append(drawn_box(box, x))
        spans[box.name] = (x, x + box.width)
        end = x + box.width
        x = end + (GAP if box.output else 22)
        if box.output in ("z_aligned", "z_restored"):  # the longest names
            x += 20
        parts.append(drawn_arrow(end, x, box.output))
    start, end = spans["extractor"][0] - 8, spans["mapper"][1] + 8
    parts.append(
        f'<rect class="group" x="{start}" y="{TOP - 26}" width="{end - start}" height="{HEIGHT + 36}" rx="6"/>'
    )
    parts.append(
        f'<text x="{(start + end) // 2}" y="{TOP - 10}">adapter: latents of degraded faces onto HQ codes</text>'
    )
    legend = "square, one outline: frozen; round, two outlines: trained, in the stage that it names (LoRA: restoration)"
    parts.append(f'<text x="{x // 2}" y="{TOP + HEIGHT + 40}">{legend}</text>')
    width, height = x + 8, TOP + HEIGHT + 56
    style = (
        f"text{{font:11px sans-serif;text-anchor:middle;fill:{INK};stroke:none}}"
        ".name{font-size:14px;font-weight:bold}"
        f".tensor{{font-size:11px;font-family:monospace}}rect,path{{stroke:{INK};stroke-width:1.3}}"
        ".group{fill:none;stroke-dasharray:5 4}"
    )
    head = '<marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="4" orient="auto">'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="LAFR">'
        f'<style>{style}</style><defs>{head}<path d="M0 0L8 4L0 8z" fill="{INK}" stroke="none"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="white" stroke="none" style="stroke:none"/>'
        f"{''.join(parts)}</svg>\n"
    )


def main() -> None:
    """Write the figure."""
    TARGET.write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
