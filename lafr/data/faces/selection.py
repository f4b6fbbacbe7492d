"""Which pictures of a source train and which validate: lists, scores and seeded draws over the items in their order."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lafr.data.faces.sources import File, Item, without_extension
from lafr.errors import InputError


def training_and_held_out(
    items: Sequence[Item],
    where: str,
    root: str | None = None,
    file_list: str | None = None,
    validation_list: str | None = None,
    validation_fraction: float = 0.05,
    scores: str | None = None,
    min_score: float | None = None,
    rank_by_score: bool = False,
    num_images: int | None = None,
    seed: int = 0,
) -> tuple[list[Item], list[Item]]:
    """Return the items to train on, in their order, and those to validate on; none is in both.

    `file_list` and `num_images` decide the training set, whatever `validation_fraction`: the items to validate on
    are then drawn from the others. Files of lists and scores are looked for in `root`, then from the working folder.

    Args:
        items: of one source.
        where: the option that named it, for errors.
        root: its folder, if it is one.
        file_list: names to train on, one a line.
        validation_list: names to validate on, in this order; taken out before anything is drawn.
        validation_fraction: share of the items held out when there is no list; at least one, at most what is left.
        scores: CSV of (name, score) or JSON lines of {"name", "score"}; higher is better, every item needs one, and
            names that the source does not hold are passed over.
        min_score: least score of an item to train or (without a list) to validate on.
        rank_by_score: take the best `num_images` (of equals the first by name) instead of drawing.
        num_images: size of the training set, drawn as `default_rng(seed).choice(N, num_images, replace=False)` from
            the N sorted items that all the above leave; all when None.
        seed: of the draws.
    """
    if (scores is None) != (min_score is None and not rank_by_score) or (rank_by_score and num_images is None):
        raise InputError(
            f"data.scores={scores!r}, data.min_score={min_score}, data.rank_by_score={rank_by_score}, "
            f"data.num_images={num_images}: give scores with min_score, or with rank_by_score and num_images"
        )
    held_out = listed(located(validation_list, root), items, root) if validation_list else None
    pool = without(items, held_out or ())
    if held_out is None and len(pool) < 2:
        raise InputError(f"{where} holds one image; two are needed to hold one out")
    score = scored(located(scores, root), pool) if scores else {}
    if min_score is not None:
        pool = [item for item in pool if score[item.name] >= min_score]
    training = pool
    if file_list:
        chosen = {item.name for item in listed(located(file_list, root), items)}
        training = [item for item in pool if item.name in chosen]
    if num_images is not None:
        spare = int(held_out is None and len(training) == len(pool))
        if not 0 < num_images <= len(training) - spare:
            raise InputError(
                f"data.num_images={num_images}, but {where} has {max(0, len(training) - spare)} training images"
                + (" and one to hold out" if spare else "")
                + "; choose another number"
            )
        training = drawn(training, num_images, score if rank_by_score else None, seed)
    if held_out is None:
        fixed = training if file_list or num_images is not None else ()
        held_out = draw_held_out(pool, fixed, validation_fraction, seed)
        training = without(training, held_out)
    if not training or not held_out:
        raise InputError(
            f"{where}: {len(training)} images to train on and {len(held_out)} to hold out are left; choose fewer to "
            "train on, a lower data.min_score, or give data.validation_list=FILE"
        )
    return training, held_out


def without(items: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """Return the items whose name is none of the others'."""
    names = {item.name for item in others}
    return [item for item in items if item.name not in names]


def drawn(items: Sequence[Item], count: int, score: dict[str, float] | None, seed: int) -> list[Item]:
    """Return `count` items, in their order: the best by `score`, of equals the first, or without it drawn by `seed`."""
    if score is None:
        chosen = np.random.default_rng(seed).choice(len(items), count, replace=False)
    else:
        chosen = sorted(range(len(items)), key=lambda i: -score[items[i].name])[:count]
    return [items[i] for i in sorted(chosen)]


def draw_held_out(pool: Sequence[Item], fixed: Sequence[Item], fraction: float, seed: int) -> list[Item]:
    """Return a seeded `fraction` of `pool`, at least one, passing over the items in `fixed`."""
    names = {item.name for item in fixed}
    order = np.random.default_rng([seed, 1]).permutation(len(pool))
    free = [i for i in order if pool[i].name not in names]
    return [pool[i] for i in sorted(free[: max(1, round(fraction * len(pool)))])]


def located(file: str, root: str | None) -> Path:
    """Return the path of a list or score file: in `root`, or as given."""
    for path in [Path(root) / file, Path(file)] if root else [Path(file)]:
        if path.is_file():
            return path
    raise InputError(
        f"list {file!r} does not exist" + (f", neither in {root!r} nor in the working folder" if root else "")
    )


def read_names(path: Path) -> list[str]:
    """Return the names in a list, one a line; blank lines and those that start with `#` are passed over."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(f"list {str(path)!r} names no file; write one name a line")
    return names


def read_text(path: Path) -> str:
    """Return a UTF-8 text."""
    try:
        return path.read_text("utf-8-sig")  # a byte order mark is no part of the first name
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"list {str(path)!r} cannot be read ({error}); save it as UTF-8 text") from None


def listed(path: Path, items: Sequence[Item], root: str | None = None) -> list[Item]:
    """Return the items that a list names, in its order; a name may also be a file in `root` that is no item."""
    names = read_names(path)
    found = matched(names, items, path)
    if root:
        for i, name in enumerate(names):
            if found[i] is None and (Path(root) / name).is_file():
                found[i] = File(Path(root) / name, without_extension(PurePosixPath(name)))
    if missing := [name for name, item in zip(names, found, strict=True) if item is None]:
        raise InputError(f"list {str(path)!r} names {len(missing)} missing of {len(names)} files, first {missing[:1]}")
    return found


def matched(names: Sequence[str], items: Iterable[Item], path: Path) -> list[Item | None]:
    """Return the item of each name in the list at `path`: the one of this name, or else the only one of this stem.

    Extensions are passed over. Raises InputError when a stem is that of several, or two names are one item.
    """
    by_name, by_stem, first, found = {}, {}, {}, []
    for item in items:
        by_name[item.name] = item
        by_stem.setdefault(item.name.rpartition("/")[2], []).append(item)
    for written in names:
        name = written if written in by_name else without_extension(PurePosixPath(written))
        same = [by_name[name]] if name in by_name else by_stem.get(name, [None])
        if len(same) > 1:
            raise InputError(
                f"list {str(path)!r}: {written!r} may be {str(same[0])!r} or {str(same[1])!r}; write the folder too"
            )
        if same[0] is not None and (other := first.setdefault(same[0].name, written)) is not written:
            raise InputError(f"list {str(path)!r} names {str(same[0])!r} twice, {other!r} and {written!r}; keep one")
        found += same
    return found


def scored(path: Path, items: Sequence[Item]) -> dict[str, float]:
    """Return item name -> score; raises InputError when an item has none."""
    lines = read_scores(path)
    names = [name for name, _ in lines]
    found = matched(names, items, path)
    score = {item.name: value for item, (_, value) in zip(found, lines, strict=True) if item is not None}
    if missing := [str(item) for item in items if item.name not in score]:
        raise InputError(
            f"scores {str(path)!r}: {len(missing)} of {len(items)} images have none, first {missing[0]!r}; score them "
            "too, or choose without them"
        )
    return score


def read_scores(path: Path) -> list[tuple[str, float]]:
    """Return (name, score) of each line: JSON lines where the file is `.json` or `.jsonl`, else CSV.

    A first line `name,score` is a header.
    """
    lines, as_json = read_text(path).splitlines(), path.suffix.lower() in (".json", ".jsonl")
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if as_json:
                record = json.loads(line)
                name, value = record["name"], float(record["score"])
            else:
                name, value = next(csv.reader([line]))
                if number == 1 and (name, value) == ("name", "score"):
                    continue
                value = float(value)
            if not math.isfinite(value):
                raise ValueError(f"{value} is no score")
        except (ValueError, TypeError, LookupError, csv.Error) as error:
            form = '{"name": "00000", "score": 0.7}' if as_json else "00000,0.7"
            raise InputError(f"scores {str(path)!r}, line {number}, {line!r}: {error}; write {form}") from None
        pairs.append((str(name).strip(), value))
    return pairs
