"""What a model is trained on: names, sizes and filters of its sets, as their preparation recorded them."""

from collections import Counter
from pathlib import Path

from lafr.data.benchmarks import INDEX, prepared_index
from lafr.data.faces.sources import FaceSet, File
from lafr.data.faces.variants import Variant


def training_set(faces: FaceSet, held_out: FaceSet) -> dict:
    """Return what a model is trained on: number of faces, variants of each, side in pixels, each set they come from.

    A set that `lafr prepare` made has the name, filter and side of its index.json, another folder its own name.
    `lafr.provenance` carries the record into the run, its model and the note under a table.
    """
    items = [item for item in getattr(faces, "items", ()) if not isinstance(item, Variant)]
    count = len(items) or len(faces)
    folders = Counter(item.path.parent if isinstance(item, File) else None for item in items)
    sets: dict[Path | None, dict] = {}
    for folder, number in folders.items():
        place = folder and set_of(folder)
        known = sets.setdefault(place, {**described(place), "faces": 0})
        known["faces"] += number
    own = list(sets.values()) or [{"name": "packaged faces", "faces": count}]
    found = {"faces": count, "held_out": len(held_out), "resolution": faces[0].shape[-1], "sets": own}
    variants = len(faces) // count - 1
    return found | ({"variants": variants} if variants else {})


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
