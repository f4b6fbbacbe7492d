"""From what a user downloaded to a set that is checked, aligned, resized and indexed."""

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from lafr.data.severity import psnr, require_severity, sharpness
from lafr.errors import InputError
from lafr.images import read_pil, write_image
from lafr.preparation.aligning import Converter
from lafr.preparation.archives import each_image
from lafr.preparation.downloads import is_address, public
from lafr.preparation.indexes import INDEX, read_index, require_same, sha256_of, sha256_of_pixels, verify
from lafr.preparation.origins import Source, choose, find_source, pair, read_names
from lafr.preparation.sheet import set_sheet
from lafr.preparation.unfinished import Unfinished
from lafr.storage import write_json


def prepare(
    name: str, output: str, source: str | None, made_by: Mapping, *, source_hq: str | None = None,
    sha256: str | None = None, sha256_hq: str | None = None, parts: Sequence[str] = (), inside: str | None = None,
    count: int | None = None, only: str | Sequence[str] | None = None, resolution: int = 512, filter: str = "lanczos",
    aligned: bool = True, allow_missing: int = 0, severity: str | None = None, remedy: str = "",
) -> str:  # fmt: skip
    """Make the folder `output` of PNG images from a folder, an archive or an address; return what to tell the user.

    Run again, a stopped run goes on to the same bytes, and a finished set is verified. Until it is finished all lies
    in `output`.part; a wrong input leaves nothing.

    Args:
        name: of the set.
        output: folder to make.
        source: of the images; where there are pairs of LQ, or of both in folders lq/ and hq/.
        made_by: command, date and versions, for the index.
        source_hq: of the HQ images.
        sha256: that the archive must have (for a folder: that of its names and sizes).
        sha256_hq: the same of `source_hq`.
        parts: subfolders to make: none, lq, or lq and hq.
        inside: name of the source's subfolder to take, if it has one.
        count: number of images the set must have.
        only: text file, or several, of the images to take, one name a line; `count` is then
            theirs.
        resolution: side in pixels.
        filter: lanczos, bicubic or bilinear, antialiased.
        aligned: the faces are aligned already; else they are found, and aligned to the FFHQ template.
        allow_missing: number of images that may be left out because no face is found.
        severity: severe or mild, which the pairs must be.
        remedy: how to get the set, for the error when there is no `source`.
    """
    _require_sense(aligned, parts, {"count": count, "allow_missing": allow_missing, "resolution": resolution})
    work, done = Unfinished(Path(output)), read_index(Path(output))
    lists = [Path(only)] if isinstance(only, str) else [Path(file) for file in only or ()]
    wanted = frozenset[str]().union(*map(read_names, lists)) if lists else None
    taken = {file.name: sha256_of(file) for file in lists} or None
    count = count if wanted is None else len(wanted)
    settings = dict(resolution=resolution, filter=filter, aligned=aligned, count=count, only=taken)
    job = {"dataset": name, "settings": settings}
    if source is None and done is None:
        raise InputError(f"{name} needs source=FOLDER_OR_ARCHIVE: {remedy}; data/README.md says more")
    if source is None:
        return _complete(job, done, work)
    given = _given(parts, (source, sha256), (source_hq, sha256_hq))
    if done is not None:
        return _complete(job | {"sources": _as_before(given, work, done)}, done, work)

    convert = Converter(resolution, filter, aligned)
    with nullcontext() if work.begun else work.discarded():
        sources = _sources(given, work)
    job["sources"] = {part: dict(found.record) for part, found in sources.items()}
    work.begin(job)
    with work.discarded():
        together = len(given) == 2 and not source_hq
        members = {
            part: choose(found, part if together else inside, together, wanted, count, exact=aligned)
            for part, found in sources.items()
        }
        references = pair(members)
        for part in reversed(members):  # HQ first: LQ is measured against it
            _make(part, sources[part], members[part], references, work, convert)
        record = job | _checked(name, work, count, allow_missing, severity)
        made_by = {**made_by, "versions": {**made_by.get("versions", {}), **convert.versions}}
        sheet = _finish(record | {"made_by": made_by}, work)
    return _summary(record, sheet)


def _require_sense(aligned: bool, parts: Sequence[str], numbers: Mapping[str, int | None]) -> None:
    for key, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 0):
            raise InputError(f"{key}={value} is no count; give a whole number")
    if not isinstance(aligned, bool):
        raise InputError(f"aligned={aligned} is neither true nor false; give one of them")
    if "hq" in parts and not aligned:
        raise InputError("aligned=false would align LQ and HQ apart; align both alike, then leave aligned=true")


Given = Mapping[str, tuple[str, str | None]]  # part -> its source and the sha256 pinned for it


def _given(parts: Sequence[str], lq: tuple[str, str | None], hq: tuple[str | None, str | None]) -> Given:
    if hq[0] and "hq" not in parts:
        raise InputError(f"this set has no ground truth; leave out source_hq={hq[0]}")
    return {part: hq if part == "hq" and hq[0] else lq for part in parts or [""]}


def _sources(given: Given, work: Unfinished) -> dict[str, Source]:
    """Return the source of each part; two parts in one source are looked at once."""
    found: dict[tuple[str, str | None], Source] = {}
    for part, key in given.items():
        if key not in found:
            found[key] = find_source(*key, work.folder / f"download_{part}".rstrip("_"), work.target)
    return {part: found[key] for part, key in given.items()}


def _as_before(given: Given, work: Unfinished, done: Mapping) -> dict[str, Mapping]:
    """Return what the index would say of sources for a set that is finished: no address is downloaded again."""
    records = {}
    for part, (source, pinned) in given.items():
        before = done["sources"].get(part, {})
        if is_address(source):
            records[part] = before if before.get("address") == public(source) else {"sha256": public(source)}
        else:
            records[part] = find_source(source, pinned, work.folder, work.target).record
    return records


def _complete(job: Mapping, done: Mapping, work: Unfinished) -> str:
    require_same(done, job, work.target)
    verify(work.target, done)
    work.remove()
    return f"{work.target} is complete: {done['images']} images, every file as it was written"


def _make(
    part: str, source: Source, members: Mapping[str, str], references: Mapping[str, str], work: Unfinished,
    convert: Converter,
) -> None:  # fmt: skip
    """Write the images of one part that are not yet written, and note each."""
    todo = {member: stem for stem, member in members.items() if (part, stem) not in work.done}
    bar = tqdm(desc=f"prepare {part}".strip(), initial=len(members) - len(todo), total=len(members), unit="image")
    with bar, closing(each_image(source.path, todo, work.folder / "member")) as images:
        for member, path in images:
            try:
                image, facts = convert(path)
            except InputError as error:  # said of the name that the user knows
                what = f"{member!r} in {source.record['name']!r}"
                raise InputError(str(error).replace(repr(str(path)), what)) from None
            record = {"part": part, "name": todo[member], "member": member} | facts
            if image is not None:
                record |= _write(image, work.set, PurePosixPath(part, f"{todo[member]}.png").as_posix())
                if part == "lq" and references:
                    record |= _measure(image, work.set, f"hq/{references[todo[member]]}.png")
            work.note(record)
            bar.update()


def _write(image: Image.Image, folder: Path, file: str) -> dict:
    try:
        write_image(image, folder / file)
    except InputError as error:  # a full disk is not the input's fault: what is done stays
        raise OSError(str(error)) from None
    return {"file": file, "sha256": sha256_of(folder / file), "pixels_sha256": sha256_of_pixels(image)}


def _measure(image: Image.Image, folder: Path, reference: str) -> dict:
    lq, hq = np.asarray(image), np.asarray(read_pil(folder / reference))
    return {"reference": reference, "psnr_rgb": psnr(lq, hq), "sharper": sharpness(lq) > sharpness(hq)}


def _checked(name: str, work: Unfinished, count: int | None, allow_missing: int, severity: str | None) -> dict:
    """Return what was made, for the index; raises InputError unless it is as it should be."""
    noted = [work.done[key] for key in sorted(work.done)]
    files = [record for record in noted if "file" in record]
    left_out = [record for record in noted if "left_out" in record]
    if len(left_out) > allow_missing or not files:
        first = [record["member"] for record in left_out[:3]]
        raise InputError(
            f"no face was found in {len(left_out)} of {len(noted)} images, first {first}; "
            f"give allow_missing={len(left_out)} to leave them out, or take others"
        )
    pairs = [record for record in files if "reference" in record]
    images = len(pairs or files)
    if count is not None and images != count:
        raise InputError(f"{name} has {images} images, not {count}; give count={images} if that is right")
    values, sharper = [p["psnr_rgb"] for p in pairs], [p["sharper"] for p in pairs]
    measured = require_severity(severity, values, sharper) if severity else {}
    return {"images": images, **measured, "left_out": left_out, "files": files}


def _finish(record: Mapping, work: Unfinished) -> Path:
    """Write sheet and index, give the folder its name, and return where the sheet lies."""
    flat = "" in record["sources"]
    sheet = ".sheet.png" if flat else "sheet.png"  # among the faces it would be taken for one, were it not hidden
    write_image(set_sheet(record["files"], work.set), work.set / sheet)
    write_json(dict(record), work.set / INDEX)
    work.finish()
    return work.target / sheet


def _summary(record: Mapping, sheet: Path) -> str:
    """Return what was made, and which images were left out."""
    what = "pairs" if "hq" in record["sources"] else "images"
    measured = f"; LQ has {record['psnr_rgb_mean']:.2f} dB: {record['severity']}" if "severity" in record else ""
    side = record["settings"]["resolution"]
    lines = [f"left out: {r['member']}: {r['left_out']}" for r in record["left_out"]]
    made = f"prepared {record['images']} {what} of {record['dataset']} at {side} px in {sheet.parent}{measured}"
    return "\n".join([*lines, f"{made} (look at {sheet})"])
