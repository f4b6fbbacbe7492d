"""The one writer of Markdown tables."""

import re
from collections.abc import Iterable, Sequence


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; headings and cells are Markdown already, see `escaped`."""
    lines = [headings, *rows]
    text = [f"| {' | '.join(map(str, cells))} |" for cells in lines]
    return "\n".join([text[0], "|" + "---|" * len(headings), *text[1:]])


def escaped(text: str) -> str:
    """Return a name on one line, with the characters escaped that Markdown or HTML would interpret."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))
