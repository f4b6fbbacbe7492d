"""The faces that a report shows: chosen by their scores, read one at a time, embedded within a budget."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lafr.images import EXTENSIONS, read_pil

SIDE, SMALL = 512, 160  # pixels of an embedded image, of one on the identity sheet
QUALITY = 90
BUDGET = 12_000_000  # characters of all embedded images: the page stays under 15 MB


@dataclass(frozen=True)
class Face:
    """One face: images as data URIs (None where there is no file or no room)."""

    stem: str
    lq: str | None
    restored: str | None
    hq: str | None


class Album:
    """Images of a result, found by stem in the folders of the record's `pictures`; at most one is open at a time.

    Args:
        folders: method -> folder, relative to `folder`; "HQ" and "LQ input" among them where there are any.
        folder: of the record.
        method: whose images are the restored ones.
        budget: characters of data URIs that may be given out.
    """

    def __init__(self, folders: dict[str, str], folder: Path, method: str, budget: int = BUDGET):
        self.folders = {name: folder / where for name, where in folders.items()}
        self.method, self.left, self.full = method, budget, False

    def face(self, stem: str, side: int = SIDE) -> Face:
        """Return a face with images no larger than `side`; without any once the budget is spent."""
        found = [self.embedded(name, stem, side) for name in ("LQ input", self.method, "HQ")]
        cost = sum(len(uri) for uri in found if uri)
        if self.full or cost > self.left:
            self.full = True
            return Face(stem, None, None, None)
        self.left -= cost
        return Face(stem, *found)

    def embedded(self, name: str, stem: str, side: int) -> str | None:
        """Return an image as a data URI, None where there is no file."""
        path = next((p for p in self.candidates(name, stem) if p.is_file()), None)
        return None if path is None or self.full else data_uri(read_pil(path), side)

    def candidates(self, name: str, stem: str) -> Iterator[Path]:
        """Return where an image may lie; an HQ image may lack the sample number at the stem's end."""
        folder = self.folders.get(name)
        if folder is not None:
            face, _, number = stem.rpartition("_")
            for own in (stem, face) if name == "HQ" and number.isdigit() else (stem,):
                yield from (folder / f"{own}{extension}" for extension in (".png", *sorted(EXTENSIONS)))


def data_uri(image: Image.Image, side: int) -> str:
    """Return an image as a WebP data URI, shrunk to `side` pixels if it is larger."""
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
