"""Every method's restored images as PNG files, one folder each, made once: what a PNG holds is what is scored."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from lafr.data.benchmarks import Pair
from lafr.evaluation.methods import Batch, Method, folder_names
from lafr.evaluation.progress import ProgressLog
from lafr.images import from_uint8, read_image, to_pil, to_uint8
from lafr.storage import atomic_write, sha256_of_file, sha256_of_tensors, sha256_of_values


class RestoredImages:
    """The images of `methods` under `folder`, as `METHOD/STEM.png`.

    An image that is not finite has failed: its file is gray, its line in the log says so, and no metric measures it.
    An image is kept if its line in the log names the same input, cache key and batch and the file's bytes are still
    those; else its whole batch is restored, so that a batch is the same whether a run was stopped or not.
    """

    def __init__(self, methods: Mapping[str, Method], folder: Path, log: ProgressLog):
        self.methods, self.folder, self.log = methods, folder, log
        self.folders = folder_names(methods)
        self.known: dict[tuple[str, str], dict] = {}
        self.warnings: list[str] = []  # files that are not what an earlier run wrote, images that failed
        self._pixels: dict[tuple[str, str], Tensor] = {}  # of this batch's files, 8-bit

    def load(self, lines: Sequence[dict]) -> int:
        """Take in the log of all processes; return how many images it lists."""
        found = [line for line in lines if "image" in line]
        for line in found:
            line.pop("run", None)
        self.known = {(line["image"], line["stem"]): line for line in found}
        return len(found)

    def path(self, method: str, stem: str) -> Path:
        """Return the file of an image."""
        return self.folder / self.folders[method] / f"{stem}.png"

    def make(self, batch: Batch) -> None:
        """Restore by every method whose images of `batch` are not all there."""
        self._pixels.clear()
        inputs = [hashes_of(pair) for pair in batch.pairs]
        together = sha256_of_values(batch.stems)  # in another batch an image may differ by rounding
        for name, method in self.methods.items():
            wanted = []
            for pair, hashes in zip(batch.pairs, inputs, strict=True):
                sides = {side: hashes[side] for side in method.of if side in hashes}
                wanted.append({"image": name, "stem": pair.stem, **sides, "key": method.key(pair), "batch": together})
            if not all(self._is_there(line) for line in wanted):
                for pair, image, line in zip(batch.pairs, method.make(batch), wanted, strict=True):
                    path = self.path(name, pair.stem)
                    if failed := not bool(image.isfinite().all()):
                        self.warnings.append(f"{name} made NaN or infinity of {pair.stem!r}: counted as failed")
                        image = torch.zeros_like(image)
                    write_png(image, path, None if failed else method.source(pair))
                    self._pixels[name, pair.stem] = to_uint8(image).cpu()  # PNG loses nothing
                    self._append(line | {"png": sha256_of_file(path), **({"failed": True} if failed else {})})

    def _is_there(self, wanted: dict) -> bool:
        line = self.known.get((wanted["image"], wanted["stem"]))
        path = self.path(wanted["image"], wanted["stem"])
        if line is None or wanted["key"] is None:
            return False
        if line != wanted | {key: line[key] for key in ("png", "failed") if key in line}:
            return False
        if path.is_file() and sha256_of_file(path) == line["png"]:
            return True
        self.warnings.append(f"{str(path)!r} is {'damaged' if path.is_file() else 'missing'}; its batch is made again")
        return False

    def _append(self, line: dict) -> None:
        self.log.append(line)
        self.known[line["image"], line["stem"]] = line

    def sha256(self, method: str, stems: Sequence[str]) -> list[str]:
        """Return the hashes of a method's files."""
        return [self.known[method, stem]["png"] for stem in stems]

    def failed(self, method: str, stems: Sequence[str]) -> list[bool]:
        """Return which of a method's images are not finite."""
        return [bool(self.known[method, stem].get("failed")) for stem in stems]

    def read(self, method: str, stems: Sequence[str]) -> Tensor:
        """Return what a method's files hold, `[B, 3, R, R]` in [-1, 1]."""
        for stem in stems:
            if (method, stem) not in self._pixels:
                self._pixels[method, stem] = to_uint8(read_image(self.path(method, stem)))
        return from_uint8(torch.stack([self._pixels[method, stem] for stem in stems]))


def write_png(image: Tensor, path: Path, source: Path | None = None) -> None:
    """Write an image, or copy the file that it was read from where that is a PNG of its size: compression takes time.

    Compression level 1: a tenth larger and three times faster than Pillow's default.
    """
    if source is not None and fits(source, image):
        atomic_write(path, lambda temporary: shutil.copyfile(source, temporary))
    else:
        atomic_write(path, lambda temporary: to_pil(image).save(temporary, compress_level=1))


def fits(source: Path, image: Tensor) -> bool:
    """Return whether a file is an 8-bit RGB PNG of an image's size: then nothing was resized when it was read."""
    with Image.open(source) as header:
        return header.format == "PNG" and header.mode == "RGB" and header.size == (image.shape[2], image.shape[1])


def hashes_of(pair: Pair) -> dict[str, str]:
    """Return side -> sha256 of the pixels, of each side that a test pair has."""
    sides = {"lq": pair.lq, "hq": pair.hq}
    return {side: sha256_of_tensors({"": image}) for side, image in sides.items() if image is not None}
