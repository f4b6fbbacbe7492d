"""Which images of a source train and which validate: lists, scores and seeded draws over the items in their order."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from lafr.data.faces.sources import File, Item, without_extension
from lafr.data.faces.variants import with_variants
from lafr.errors import InputError, setting
from lafr.storage import shipped


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
    variants: int = 0,
    seed: int = 0,
) -> tuple[list[Item], list[Item]]:
    """Return the items to train on, in their order, and those to validate on; none is in both.

    `file_list` and `num_images` decide the training set, whatever `validation_fraction` is: the items to validate on
    are then drawn from the others. Lists and scores are searched for in `root`, then in the working folder.

    Args:
        items: of one source.
        where: names the source in errors: its parameter and value.
        root: the source's folder, if it is one.
        file_list: names to train on, one per line.
        validation_list: names to validate on, in this order; removed before anything is drawn.
        validation_fraction: share of the items held out when there is no list; at least one, at most what is left.
        scores: CSV of (name, score) or JSON lines of {"name", "score"}; higher is better. Every item needs one; names
            that the source does not have are ignored.
        min_score: lowest score of an item to train or (without a list) to validate on.
        rank_by_score: take the best `num_images` (of equals the first by name) instead of drawing.
        num_images: size of the training set, drawn as `default_rng(seed).choice(N, num_images, replace=False)` from
            the N sorted items that all of the above leave; all when None.
        variants: bent and recoloured copies of each item to train on, behind them all (`lafr.data.faces.variants`).
        seed: of the draws.
    """
    require_scores_used(scores, min_score, rank_by_score, num_images)
    if not isinstance(validation_fraction, int | float) or not 0 <= validation_fraction <= 1:
        raise InputError("validation_fraction", validation_fraction, "a number from 0 to 1")
    if not isinstance(min_score, int | float | None):
        raise InputError("min_score", min_score, "None or a number")
    # 1. a validation list is removed before anything is drawn
    held_out = listed(located(validation_list, root), items, root) if validation_list else None
    pool = without(items, held_out or ())
    if held_out is None and len(pool) < 2:
        raise InputError(f"{where} holds one image; two are needed, to train and to validate on")
    # 2. a minimal score applies to what trains and what is held out by seed
    score = scored(located(scores, root), pool) if scores else {}
    if min_score is not None:
        pool = [item for item in pool if score[item.name] >= min_score]

    # 3. the training set: a list, or a number of images, or everything
    training = pool
    if file_list:
        chosen = {item.name for item in listed(located(file_list, root), items)}
        training = [item for item in pool if item.name in chosen]
    if num_images is not None:
        reserve = held_out is None and len(training) == len(pool)  # one image must be left to validate on
        require_count(num_images, len(training) - 1 if reserve else len(training), where, reserve)
        training = drawn(training, num_images, score if rank_by_score else None, seed)
    # 4. without a validation list, a share of the pool that is not fixed above
    if held_out is None:
        fixed = training if file_list or num_images is not None else ()
        held_out = draw_held_out(pool, fixed, validation_fraction, seed)
        training = without(training, held_out)
    require_both(training, held_out, where)
    return with_variants(training, variants, seed), held_out


def require_both(training: Sequence[Item], held_out: Sequence[Item], where: str) -> None:
    """Raise InputError where nothing is left to train or to validate on."""
    if not training or not held_out:
        raise InputError(
            f"{where} leaves {len(training)} images to train on and {len(held_out)} to validate on",
            remedy=f"choose fewer to train on, a lower {setting('min_score')}, or give a {setting('validation_list')}",
        )


def require_count(num_images: int, most: int, where: str, reserve: bool) -> None:
    """Raise InputError unless `most` training images are enough for `num_images`."""
    if not 0 < num_images <= most:
        besides = " besides one to validate on" if reserve else ""
        raise InputError("num_images", num_images, f"from 1 to {max(0, most)}, the training images of {where}{besides}")


def require_scores_used(
    scores: str | None, min_score: float | None, rank_by_score: bool, num_images: int | None
) -> None:
    """Raise InputError where scores are given and not used, or the other way round."""
    used = min_score is not None or rank_by_score
    if (scores is None) == used or (rank_by_score and num_images is None):
        raise InputError(
            f"{setting('scores', scores)} with {setting('min_score', min_score)}, "
            f"{setting('rank_by_score', rank_by_score)}, {setting('num_images', num_images)} chooses nothing",
            remedy=f"give scores with {setting('min_score')}, or with {setting('rank_by_score', True)} and "
            f"{setting('num_images')}",
        )


def without(items: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """Return the items that share no name with `others`."""
    names = {item.name for item in others}
    return [item for item in items if item.name not in names]


def drawn(items: Sequence[Item], count: int, score: dict[str, float] | None, seed: int) -> list[Item]:
    """Return `count` items, in their order: the best by `score`, or without it drawn by `seed`."""
    if score is None:
        # the published list of 600 is this draw: it must not change
        chosen = np.random.default_rng(seed).choice(len(items), count, replace=False).tolist()
    else:
        # sorted() is stable: of equal scores the first by name is taken
        chosen = sorted(range(len(items)), key=lambda i: -score[items[i].name])[:count]
    return [items[i] for i in sorted(chosen)]


def draw_held_out(pool: Sequence[Item], fixed: Sequence[Item], fraction: float, seed: int) -> list[Item]:
    """Return a seeded `fraction` of `pool`, at least one, without the items in `fixed`."""
    names = {item.name for item in fixed}
    # permute the whole pool, then skip: the same images are held out whatever is fixed, as far as they are free
    order = np.random.default_rng([seed, 1]).permutation(len(pool))
    free = [i for i in order if pool[i].name not in names]
    return [pool[i] for i in sorted(free[: max(1, round(fraction * len(pool)))])]


def located(file: str, root: str | None) -> Path:
    """Return the path of a list or score file: in `root`, or as given."""
    # the folder of the faces first: a list lies next to the images that it names
    for path in [Path(root) / file, Path(file)] if root else [Path(file)]:
        if path.is_file():
            return path
    travelling = shipped(file)  # FFHQ's lists
    if travelling.is_file():
        return travelling
    places = f"neither in {root!r} nor in the working folder" if root else "not in the working folder"
    raise InputError(f"list {file!r} does not exist, {places}")


def read_names(path: Path) -> list[str]:
    """Return the names in a list, one per line; blank lines and those that start with `#` are ignored."""
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(f"list {str(path)!r} names no file; write one name per line")
    return names


def read_text(path: Path) -> str:
    """Return a UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark before the first name
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"list {str(path)!r} cannot be read ({error}); save it as UTF-8 text") from None


def listed(path: Path, items: Sequence[Item], root: str | None = None) -> list[Item]:
    """Return the items that a list names, in its order; a name may also be a file in `root` that is no item."""
    names = read_names(path)
    found: list[Item] = []
    missing = []
    for name, item in zip(names, items_named(names, items, path), strict=True):
        if item is not None:
            found.append(item)
        elif root and (Path(root) / name).is_file():
            found.append(File(Path(root) / name, without_extension(PurePosixPath(name))))
        else:
            missing.append(name)
    if missing:
        raise InputError(f"list {str(path)!r} names {len(missing)} missing of {len(names)} files, first {missing[0]!r}")
    return found


def items_named(names: Sequence[str], items: Iterable[Item], path: Path) -> list[Item | None]:
    """Return the item of each name in the list at `path`: the one of this name, else the only one of this stem.

    Extensions are ignored. Raises InputError when several items have a stem, or two names are one item.
    """
    by_name: dict[str, Item] = {}
    by_stem: dict[str, list[Item]] = {}
    for item in items:
        by_name[item.name] = item
        by_stem.setdefault(item.name.rpartition("/")[2], []).append(item)
    first: dict[str, str] = {}  # item's name -> how the list wrote it
    found: list[Item | None] = []
    for written in names:
        # a dot may belong to the name ("3.5"): the name as written goes first
        name = written if written in by_name else without_extension(PurePosixPath(written))
        same = [by_name[name]] if name in by_name else by_stem.get(name, [None])
        if len(same) > 1:
            raise InputError(
                f"list {str(path)!r}: {written!r} may be {str(same[0])!r} or {str(same[1])!r}; write the folder too"
            )
        # `first` remembers how an item was written, to name both in the message
        if same[0] is not None and (other := first.setdefault(same[0].name, written)) is not written:
            raise InputError(f"list {str(path)!r} names {str(same[0])!r} twice, {other!r} and {written!r}; keep one")
        found += same
    return found


def scored(path: Path, items: Sequence[Item]) -> dict[str, float]:
    """Return item name -> score; raises InputError when an item has none."""
    lines = read_scores(path)
    found = items_named([name for name, _ in lines], items, path)
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
    read_line, example = score_in_csv, "00000,0.7"
    if path.suffix.lower() in (".json", ".jsonl"):
        read_line, example = score_in_json, '{"name": "00000", "score": 0.7}'
    pairs = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip() or (number == 1 and line.replace('"', "").strip() == "name,score"):
            continue
        try:
            name, value = read_line(line)
            if not math.isfinite(value):  # "nan" would sort anywhere
                raise ValueError(f"{value} is no score")
        except (ValueError, TypeError, LookupError, csv.Error) as error:
            raise InputError(f"scores {str(path)!r}, line {number}, {line!r}: {error}; write {example}") from None
        pairs.append((name.strip(), value))
    return pairs


def score_in_csv(line: str) -> tuple[str, float]:
    """Return name and score of `00000,0.7`; names may be quoted."""
    name, value = next(csv.reader([line]))
    return name, float(value)


def score_in_json(line: str) -> tuple[str, float]:
    """Return name and score of `{"name": "00000", "score": 0.7}`; other keys are ignored."""
    record = json.loads(line)
    return str(record["name"]), float(record["score"])
