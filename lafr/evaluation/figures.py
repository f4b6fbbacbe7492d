"""Figures of Matplotlib, written so that equal numbers give equal bytes."""

from pathlib import Path
from typing import Any

from lafr.storage import atomic_write


def save_svg(figure: Any, path: Path) -> None:
    """Write a figure as an SVG with neither random ids nor a date, atomically."""
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "lafr"}):
        atomic_write(path, lambda temporary: figure.savefig(temporary, format="svg", metadata={"Date": None}))
