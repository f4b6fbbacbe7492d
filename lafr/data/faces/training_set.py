"""What a model is trained on: names, sizes and filters of its sets, as their preparation recorded them."""

from collections import Counter
from pathlib import Path

from lafr.data.benchmarks import INDEX, prepared_index
from lafr.data.faces.sources import FaceSet, File


def training_set(faces: FaceSet, held_out: FaceSet) -> dict:
    """Return what a model is trained on: number of faces, side in pixels, and each set they come from.

    A set that `lafr prepare` made has the name, filter and side of its index.json, another folder its own name.
    `lafr.provenance` carries the record into the run, its model and the note under a table.
    """
    items = getattr(faces, "items", None)
    folders = Counter(item.path.parent if isinstance(item, File) else None for item in items or ())
    sets: dict[Path | None, dict] = {}
    for folder, count in folders.items():
        place = folder and set_of(folder)
        known = sets.setdefault(place, {**described(place), "faces": 0})
        known["faces"] += count
    own = list(sets.values()) or [{"name": "packaged faces", "faces": len(faces)}]
    return {"faces": len(faces), "held_out": len(held_out), "resolution": faces[0].shape[-1], "sets": own}


def set_of(folder: Path) -> Path:
    """Return the prepared set that holds a folder of images; the folder itself where none does."""
    # FFHQ's images may lie in folders of a thousand
    return next((place for place in (folder, folder.parent) if (place / INDEX).is_file()), folder)


def described(place: Path | None) -> dict:
    """Return name, filter and side of a set, as far as they are known; None stands for shards and datasets."""
    if place is None:
        return {"name": "shards or a dataset"}
    index = prepared_index(place) or {}
    settings = index.get("settings", {})
    name = {"name": index.get("dataset", place.absolute().name)}
    return name | {key: settings[key] for key in ("filter", "resolution") if key in settings}
