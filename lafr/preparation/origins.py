"""The sources of a dataset: downloaded, listed, hashed, and the members to take."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lafr.data.benchmarks import match_by_stem
from lafr.data.faces import selection
from lafr.errors import InputError, setting
from lafr.images import EXTENSIONS
from lafr.preparation.archives import list_source
from lafr.preparation.downloads import download, is_address, public
from lafr.preparation.indexes import sha256_of, sha256_of_names


@dataclass(frozen=True)
class Source:
    """The source of one part's images: a local folder or archive, its images, and its record for the index."""

    path: Path
    images: tuple[str, ...]
    record: Mapping


def find_source(given: str, pinned: str | None, download_to: Path, output: Path) -> Source:
    """Return the source, downloaded to `download_to` if `given` is an address, and hashed.

    A folder's hash is that of its images' names and sizes. Raises InputError when it does not exist, holds no image, or
    its sha256 is not the one `pinned`.
    """
    path = download(given, download_to) if is_address(given) else Path(given)
    if not path.exists():
        raise InputError("source", given, "an existing folder, zip or tar archive, or an address")
    if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
        raise InputError("output", str(output), f"a folder outside its own source {given!r}")
    listing = list_source(path)
    digest = sha256_of_names(listing.images) if path.is_dir() else sha256_of(path, "sha256")
    if pinned and str(pinned).lower() != digest:
        raise InputError(f"the sha256 of {given!r} is {digest}, not {pinned}; get the right one, or pin what you trust")
    record = {
        "name": PurePosixPath(public(given)).name if is_address(given) else path.resolve().name,
        "address": public(given) if is_address(given) else None,
        "sha256": digest,
        "sha256_of": "names and sizes" if path.is_dir() else "archive",
        "images": len(listing.images),
        "ignored": listing.ignored,
    }
    return Source(path, tuple(listing.images), record)


def find_list(file: str | Path) -> Path:
    """Return the path of a list of image names: as given, or shipped with LAFR."""
    try:
        return selection.located(str(file), root=None)
    except InputError:
        raise InputError("only", str(file), "a text file that exists", "write one image name per line") from None


def read_names(path: Path) -> frozenset[str]:
    """Return the stems of the images named in a list, one per line; a line that begins with `#` is a comment."""
    return frozenset(stem_of(name) for name in selection.read_names(path))


def stem_of(name: str) -> str:
    """Return an image's name without folders and extension; other suffixes belong to the name."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in EXTENSIONS else path.name


def choose(
    source: Source, inside: str | None, required: bool, wanted: frozenset[str] | None, count: int | None, exact: bool
) -> dict[str, str]:
    """Return stem -> member of the images to take, in the source's order.

    Args:
        source: to choose from.
        inside: name of the only folder, at any depth, to take; without such a folder all of the source is taken.
        required: there must be such a folder.
        wanted: stems to take; all when None.
        count: least number of images.
        exact: `count` is also the largest number.

    Raises InputError for a wrong count, missing names, and two images of one stem.
    """
    where = f"source {source.record['name']!r}"
    within = [name for name in source.images if inside in PurePosixPath(name).parts[:-1]]
    if required and not within:
        raise InputError(
            f"{where} has no images in a folder {inside!r}; give one with lq/ and hq/, or {setting('source_hq')} too"
        )
    members: dict[str, str] = {}
    seen: dict[str, str] = {}  # folded case: some file systems ignore it
    for name in within or source.images:
        stem = stem_of(name)
        if wanted is not None and stem not in wanted:
            continue
        if twin := seen.get(stem.casefold()):
            raise InputError(f"{where} holds {twin!r} and {name!r}, both would be {stem}.png; remove one")
        seen[stem.casefold()] = members[stem] = name
    if wanted is not None and (missing := sorted(wanted - members.keys())):
        raise InputError(f"{where} lacks {len(missing)} of {len(wanted)} images in the list, first {missing[:3]}")
    if count is not None and (len(members) < count or (exact and len(members) > count)):
        raise InputError(
            f"{where} holds {len(members)} images, the set has {count}; get the right one, give "
            f"{setting('count', len(members))} if this part is meant, or list its images in {setting('only')}"
        )
    return members


def pair(members: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the HQ stem of each LQ stem; {} for a set without HQ images."""
    if "hq" not in members:
        return {}
    lq = [Path(f"{stem}.png") for stem in members["lq"]]
    hq = [Path(f"{stem}.png") for stem in members["hq"]]
    return {image.stem: reference.stem for image, reference in zip(lq, match_by_stem(lq, hq), strict=True)}
