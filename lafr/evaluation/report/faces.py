"""The faces that a report shows: chosen by their scores, read one at a time, embedded within a budget."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lafr.images import EXTENSIONS, read_pil

SIDE, SMALL = 512, 160  # pixels of an embedded picture, of one on the identity sheet
QUALITY = 90
BUDGET = 12_000_000  # characters of all embedded pictures: the page stays under 15 MB


@dataclass(frozen=True)
class Face:
    """One face: pictures as data URIs (None where there is no file or no room)."""

    stem: str
    lq: str | None
    restored: str | None
    hq: str | None


class Album:
    """Pictures of a result, found by stem in the folders of the record's `pictures`; at most one is open at a time.

    Args:
        pictures: row -> folder, relative to `folder`; "HQ" and "LQ input" among them where there are any.
        folder: where the record lies.
        row: the row that is restored.
        budget: characters of data URIs that may be given out.
    """

    def __init__(self, pictures: dict[str, str], folder: Path, row: str, budget: int = BUDGET):
        self.folders = {name: folder / where for name, where in pictures.items()}
        self.row, self.left, self.full = row, budget, False

    def face(self, stem: str, side: int = SIDE) -> Face:
        """Return a face with pictures no larger than `side`; without any once the budget is spent."""
        found = [self.embedded(name, stem, side) for name in ("LQ input", self.row, "HQ")]
        cost = sum(len(uri) for uri in found if uri)
        if self.full or cost > self.left:
            self.full = True
            return Face(stem, None, None, None)
        self.left -= cost
        return Face(stem, *found)

    def embedded(self, name: str, stem: str, side: int) -> str | None:
        """Return a picture as a data URI, None where there is none."""
        path = next((p for p in self.candidates(name, stem) if p.is_file()), None)
        return None if path is None or self.full else data_uri(read_pil(path), side)

    def candidates(self, name: str, stem: str) -> Iterator[Path]:
        """Return where a picture may lie; HQ is also named by the stem before a draw's suffix."""
        folder = self.folders.get(name)
        if folder is not None:
            whole, _, draw = stem.rpartition("_")
            for own in [stem] + ([whole] if name == "HQ" and draw.isdigit() else []):
                yield from (folder / f"{own}{extension}" for extension in (".png", *sorted(EXTENSIONS)))


def data_uri(picture: Image.Image, side: int) -> str:
    """Return a picture as a WebP data URI, shrunk to `side` pixels if it is larger."""
    if max(picture.size) > side:
        picture = picture.copy()
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
