"""The images of a Hugging Face dataset as stored bytes, decoded here as files are: the same pixels."""

from dataclasses import dataclass, field
from os.path import abspath, realpath
from pathlib import Path, PurePath, PurePosixPath
from types import ModuleType
from typing import Any

from PIL import Image

from lafr.data.faces.sources import in_order, without_extension
from lafr.errors import InputError, need, setting
from lafr.images import read_pil

KINDS = "a folder that save_to_disk wrote, a folder of images or Parquet files, or a name on the hub while online"


@dataclass(frozen=True, eq=False)
class Row:
    """An image that is row `index` of `dataset`, in a `column` that `datasets` does not decode."""

    path: PurePosixPath
    dataset: Any = field(repr=False)
    column: str
    index: int

    @property
    def name(self) -> str:
        """Return the path without the image extension."""
        return without_extension(self.path)

    def picture(self) -> Image.Image:
        """Return the upright 8-bit RGB image."""
        stored = self.dataset[self.index][self.column]
        data = stored["bytes"]  # None where the dataset only points to a file
        return read_pil(stored["path"] if data is None else str(self), data)

    def __str__(self) -> str:
        return f"row {self.index}, {self.path}"


def rows(
    path: str | None, split: str = "train", image_column: str = "image", name_column: str | None = None
) -> list[Row]:
    """Return the images of one split, each with the path in its `name_column`.

    Without that column an image's path is the one stored with it, relative to the folder `path` (of a file elsewhere,
    its name alone); if any image has none, the paths are the zero-padded row numbers.

    Args:
        path: folder that `save_to_disk` wrote, folder of images or Parquet files, or name on the hub.
        split: of a dataset that has several.
        image_column: column of type `datasets.Image`.
        name_column: column of names or relative paths, all different.
    """
    datasets = need("datasets", "'lafr[data]'")
    if not path:
        raise InputError("path", path, KINDS)
    dataset = load(datasets, path, split).with_format(None)
    # a dataset may have several columns of images, such as a photo and its mask
    columns = [name for name, kind in dataset.features.items() if isinstance(kind, datasets.Image)]
    if image_column not in columns:
        raise InputError("image_column", image_column, f"a column of images of {path!r}: one of {columns}")
    if name_column is not None and name_column not in dataset.column_names:
        raise InputError("name_column", name_column, f"a column of {path!r}: one of {dataset.column_names}")
    if not len(dataset):
        raise InputError("split", split, f"a split of {path!r} that has rows")
    # decode=False keeps the stored bytes; flatten() reads the paths without reading them
    images = dataset.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    if name_column is None:
        paths = stored_paths(list(images.flatten()[f"{image_column}.path"]), path)
    else:
        paths = [str(name) for name in dataset[name_column]]
    return in_order(Row(PurePosixPath(p), images, image_column, index) for index, p in enumerate(paths))


def load(datasets: ModuleType, path: str, split: str) -> Any:
    """Return one split as a `datasets.Dataset`; raises InputError with the message of `datasets`."""
    try:
        # load_dataset does not read what save_to_disk wrote, and load_from_disk reads nothing else
        if not any((Path(path) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(path, split=split)
        stored = datasets.load_from_disk(path)
        return stored[split] if isinstance(stored, datasets.DatasetDict) else stored
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = f"{setting('path', path)}, {setting('split', split)}"
        raise InputError(f"{where} cannot be loaded ({said})", remedy=f"give {KINDS}") from None


def stored_paths(files: list[str | None], root: str) -> list[str]:
    """Return the paths that a dataset stores with its images, or row numbers where one has none."""
    bases, paths = (abspath(root), realpath(root)), []  # `datasets` stores either, by its version and cache
    for file in files:
        if file is None:  # images that were added as bytes or arrays have no path
            width = len(str(len(files) - 1))
            return [f"{index:0{width}d}" for index in range(len(files))]
        inner = PurePath(file.rpartition("zip://")[2].partition("::")[0])  # zip://a/1.png::/archive.zip
        # relative to the folder, as the same files have it in a folder source
        for base in bases:
            if inner.is_relative_to(base):
                inner = inner.relative_to(base)
        paths.append(inner.name if inner.is_absolute() else inner.as_posix())
    return paths
