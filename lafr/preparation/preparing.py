"""From what a user downloaded to a set that is checked, aligned, resized and indexed."""

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from tqdm import tqdm

from lafr.data.severity import psnr, require_severity, sharpness
from lafr.errors import InputError, require_whole, setting
from lafr.images import read_pil, write_image
from lafr.preparation.aligning import Converter
from lafr.preparation.archives import each_image
from lafr.preparation.downloads import is_address, public
from lafr.preparation.indexes import INDEX, read_index, require_same, sha256_of, sha256_of_pixels, verify
from lafr.preparation.origins import Source, choose, find_list, find_source, pair, read_names
from lafr.preparation.sheet import set_sheet
from lafr.preparation.unfinished import Unfinished
from lafr.storage import write_sealed


@dataclass(frozen=True)
class Preparation:
    """How a dataset is made: `preparation(output, made_by)` makes it.

    Args:
        name: of the dataset.
        source: folder, archive or address of the images; of a set of pairs, of the LQ images, or of both in folders
            lq/ and hq/.
        source_hq: of the HQ images.
        sha256: that the archive must have (of a folder: that of its names and sizes).
        sha256_hq: the same of `source_hq`.
        parts: subfolders to make: none, lq, or lq and hq.
        inside: name of the source's subfolder to take, if it has one.
        count: number of images that the set must have.
        only: text file, or several, of the images to take, one name per line; `count` is then their number.
        resolution: side in pixels.
        filter: lanczos, bicubic or bilinear, antialiased.
        aligned: the faces are aligned already; otherwise they are found, and aligned to the FFHQ template.
        allow_missing: number of images that may be left out because no face is found.
        severity: "severe" or "mild", which the pairs must be.
        remedy: how to get the set, for the error when there is no `source`.
    """

    name: str
    source: str | None
    source_hq: str | None = None
    sha256: str | None = None
    sha256_hq: str | None = None
    parts: Sequence[str] = ()
    inside: str | None = None
    count: int | None = None
    only: str | Sequence[str] | None = None
    resolution: int = 512
    filter: str = "lanczos"
    aligned: bool = True
    allow_missing: int = 0
    severity: str | None = None
    remedy: str = ""

    def __post_init__(self) -> None:
        for key in ("count", "allow_missing", "resolution"):
            if (value := getattr(self, key)) is not None:
                require_whole(0, **{key: value})
        if not isinstance(self.aligned, bool):
            raise InputError("aligned", self.aligned, "True or False")
        if "hq" in self.parts and not self.aligned:
            raise InputError("aligned", False, "True for pairs: align LQ and HQ alike first")
        if self.source_hq and "hq" not in self.parts:
            raise InputError("source_hq", self.source_hq, "None: this set has no ground truth")

    def __call__(self, output: str, made_by: Mapping) -> str:
        """Make the folder `output` of PNG images and return a summary for the user.

        An interrupted run resumes and makes the same bytes; a finished set is verified. Until it is finished everything
        is in `output`.part; a wrong input leaves no files.

        Args:
            output: folder to make.
            made_by: command, date and versions, for the index.
        """
        work, done = Unfinished(Path(output)), read_index(Path(output))
        lists = [find_list(file) for file in ([self.only] if isinstance(self.only, str) else self.only or ())]
        wanted = frozenset[str]().union(*map(read_names, lists)) if lists else None
        count = self.count if wanted is None else len(wanted)
        job = {"dataset": self.name, "settings": self._settings(lists, count)}
        if self.source is None and done is not None:
            return _complete(job, done, work)
        if self.source is None:
            allowed = f"the folder, archive or address of {self.name} ({self.remedy})"
            raise InputError("source", None, allowed, "data/README.md says more")
        given = self._given()
        if done is not None:
            return _complete(job | {"sources": _as_before(given, work, done)}, done, work)
        with work.locked():
            return self._begin_or_continue(job, given, wanted, count, work, made_by)

    def _begin_or_continue(
        self,
        job: dict,
        given: "Given",
        wanted: frozenset[str] | None,
        count: int | None,
        work: Unfinished,
        made_by: Mapping,
    ) -> str:
        """Make the set, or what is missing of it; return a summary."""
        convert = Converter(self.resolution, self.filter, self.aligned)
        with nullcontext() if work.begun else work.discarded():
            sources = _sources(given, work)
        job["sources"] = {part: dict(found.record) for part, found in sources.items()}
        work.begin(job)
        with work.discarded():
            self._make_all(sources, wanted, count, work, convert)
            record = job | _checked(self.name, work, count, self.allow_missing, self.severity)
            made_by = {**made_by, "versions": {**made_by.get("versions", {}), **convert.versions}}
            sheet = _finish(record | {"made_by": made_by}, work)
        return _summary(record, sheet)

    def _settings(self, lists: Sequence[Path], count: int | None) -> dict:
        """Return what the images depend on besides their sources."""
        taken = {file.name: sha256_of(file) for file in lists} or None
        return dict(resolution=self.resolution, filter=self.filter, aligned=self.aligned, count=count, only=taken)

    def _given(self) -> "Given":
        lq, hq = (str(self.source), self.sha256), (str(self.source_hq), self.sha256_hq)
        return {part: hq if part == "hq" and self.source_hq else lq for part in self.parts or [""]}

    def _make_all(
        self,
        sources: Mapping[str, Source],
        wanted: frozenset[str] | None,
        count: int | None,
        work: Unfinished,
        convert: Converter,
    ) -> None:
        """Choose the members of each part and write their images."""
        together = len(sources) == 2 and not self.source_hq
        members = {
            part: choose(found, part if together else self.inside, together, wanted, count, exact=self.aligned)
            for part, found in sources.items()
        }
        references = pair(members)
        for part in reversed(members):  # HQ first: LQ is measured against it
            _make(part, sources[part], members[part], references, work, convert)


Given = Mapping[str, tuple[str, str | None]]  # part -> its source and the sha256 pinned for it


def _sources(given: Given, work: Unfinished) -> dict[str, Source]:
    """Return the source of each part; two parts with one source share it."""
    found: dict[tuple[str, str | None], Source] = {}
    for part, key in given.items():
        if key not in found:
            found[key] = find_source(*key, work.folder / f"download_{part}".rstrip("_"), work.target)
    return {part: found[key] for part, key in given.items()}


def _as_before(given: Given, work: Unfinished, done: Mapping) -> dict[str, Mapping]:
    """Return the records of a finished set's sources; no address is downloaded again."""
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
    part: str,
    source: Source,
    members: Mapping[str, str],
    references: Mapping[str, str],
    work: Unfinished,
    convert: Converter,
) -> None:
    """Write the images of one part that are not yet written, and record each."""
    todo = {member: stem for stem, member in members.items() if (part, stem) not in work.done}
    bar = tqdm(desc=f"prepare {part}".strip(), initial=len(members) - len(todo), total=len(members), unit="image")
    with bar, closing(each_image(source.path, todo, work.folder / "member")) as images:
        for member, path in images:
            try:
                image, facts = convert(path)
            except InputError as error:  # the user knows the member, not its temporary copy
                what = f"{member!r} in {source.record['name']!r}"
                raise InputError(error.args[0].replace(repr(str(path)), what)) from None
            record = {"part": part, "name": todo[member], "member": member} | facts
            if image is not None:
                record |= _write(image, work.set, PurePosixPath(part, f"{todo[member]}.png").as_posix())
                if part == "lq" and references:
                    record |= _measure(image, work.set, f"hq/{references[todo[member]]}.png")
            work.note(record)
            bar.update()


def _write(image: Image.Image, folder: Path, file: str) -> dict:
    write_image(image, folder / file)
    return {"file": file, "sha256": sha256_of(folder / file), "pixels_sha256": sha256_of_pixels(image)}


def _measure(image: Image.Image, folder: Path, reference: str) -> dict:
    lq, hq = np.asarray(image), np.asarray(read_pil(folder / reference))
    return {"reference": reference, "psnr_rgb": psnr(lq, hq), "sharper": sharpness(lq) > sharpness(hq)}


def _checked(name: str, work: Unfinished, count: int | None, allow_missing: int, severity: str | None) -> dict:
    """Return the record of the images for the index; InputError for a wrong count or severity."""
    noted = [work.done[key] for key in sorted(work.done)]
    files = [record for record in noted if "file" in record]
    left_out = [record for record in noted if "left_out" in record]
    if len(left_out) > allow_missing or not files:
        first = [record["member"] for record in left_out[:3]]
        raise InputError(
            f"no face was found in {len(left_out)} of {len(noted)} images, first {first}; "
            f"give {setting('allow_missing', len(left_out))} to leave them out, or take others"
        )
    pairs = [record for record in files if "reference" in record]
    images = len(pairs or files)
    if count is not None and images != count:
        raise InputError(f"{name} has {images} images, not {count}; give {setting('count', images)} if that is right")
    values = [pair["psnr_rgb"] for pair in pairs]
    sharper = [pair["sharper"] for pair in pairs]
    measured = require_severity(severity, values, sharper) if severity else {}
    return {"images": images, **measured, "left_out": left_out, "files": files}


def _finish(record: Mapping, work: Unfinished) -> Path:
    """Write sheet and index, rename the folder, and return the path of the sheet."""
    flat = "" in record["sources"]
    sheet = ".sheet.png" if flat else "sheet.png"  # hidden: readers of a folder of faces must not take it for one
    write_image(set_sheet(record["files"], work.set), work.set / sheet)
    write_sealed(record, work.set / INDEX)
    work.finish()
    return work.target / sheet


def _summary(record: Mapping, sheet: Path) -> str:
    """Return what was made and which images were left out, for the user."""
    what = "pairs" if "hq" in record["sources"] else "images"
    measured = f"; LQ has {record['psnr_rgb_mean']:.2f} dB: {record['severity']}" if "severity" in record else ""
    side = record["settings"]["resolution"]
    lines = [f"left out: {r['member']}: {r['left_out']}" for r in record["left_out"]]
    made = f"prepared {record['images']} {what} of {record['dataset']} at {side} px in {sheet.parent}{measured}"
    return "\n".join([*lines, f"{made} (look at {sheet})"])
