"""Restore files: photos, aligned faces and videos into a folder; aligned faces are batched over the files."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from lafr.errors import InputError, Spell, as_python, setting
from lafr.images import photo_path, read_photo, to_pil, to_rgb, upright, write_image, write_photo
from lafr.photos.detectors import Detection
from lafr.photos.faces import FaceReport, report_of_aligned
from lafr.photos.files import LONGEST_NAME, VIDEOS, Found, Outputs, find_inputs
from lafr.photos.guard import LARGE, OTHER, SHARP, Limits
from lafr.photos.journal import Journal, face_facts
from lafr.photos.restorer import NOT_UPSCALED, FaceCrops, PhotoRestorer

COMPARISON_SIDE = 1600  # pixels: longest side of each half of a before | after image
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


MOST_LINES = 10  # of one kind on the terminal; the journal has all
NO_FACE = "no face found"


@dataclass
class Outcome:
    """What a run did.

    Args:
        done: files written.
        kept: files that an earlier run had written.
        errors: of each file that was skipped.
        ignored: relative name and reason of each entry of a folder that is neither photo nor video.
        photos, videos, frames: how many of the files done.
        faces: restored, over all photos.
        video_faces: restored, over all frames of all videos.
        without_face: photos in which no face was found.
        left, video_left: reason -> faces that were left as they were, in photos and over all frames of videos.
        warnings: of each file, after its name.
    """

    done: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    errors: list[InputError] = field(default_factory=list)
    ignored: list[tuple[str, str]] = field(default_factory=list)
    photos: int = 0
    videos: int = 0
    frames: int = 0
    faces: int = 0
    video_faces: int = 0
    without_face: int = 0
    left: Counter[str] = field(default_factory=Counter)
    video_left: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    @property
    def skipped(self) -> list[str]:
        """A message for each file that was skipped."""
        return [str(error) for error in self.errors]

    def count_photo(self, faces: Sequence[FaceReport]) -> None:
        """Count a photo and its faces."""
        self.photos += 1
        self.faces += sum(face.status == "restored" for face in faces)
        self.without_face += not faces
        self.left.update(kind_of(face.reason) for face in faces if face.status == "left")


def kind_of(reason: str) -> str:
    """Return a reason without the numbers of one face: what is before its colon."""
    return reason.partition(":")[0]


@dataclass(frozen=True)
class Job:
    """One input: its path, its name in the journal, and the path of its output."""

    path: Path
    name: str
    target: Path


def restore_files(
    photos: PhotoRestorer,
    sources: Sequence[str | Path],
    output: Path,
    fidelity: float = 0.0,
    upscale: int = 1,
    force: bool = False,
    aligned: bool | str = "auto",
    side_by_side: bool = True,
    again: bool = False,
    settings: dict | None = None,
    extension: str = "png",
    suffix: str = "",
    save_faces: bool = False,
    only_center_face: bool = False,
    progress: bool = True,
) -> Outcome:
    """Restore `sources` (files, folders or patterns) into `output` under the same relative names.

    Whatever goes wrong with a file, it is skipped with its reason and the others are restored; when it is the only
    one, its InputError is raised too. A line of `output/restored.jsonl` records what was found in each file, and why an
    entry of a folder was ignored; a file that an earlier run finished under the same settings is not restored again.

    >>> import tempfile
    >>> from lafr import PhotoRestorer, Restorer, restore_files
    >>> from lafr.weights import locate
    >>> photos = PhotoRestorer(Restorer.from_pretrained("mini"))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     outcome = restore_files(photos, [locate("astronaut")], Path(folder), suffix="restored", save_faces=True)
    >>> [path.name for path in outcome.done]
    ['astronaut_restored.png']

    Args:
        photos: restores them; its `batch_size` counts faces.
        sources: see `find_inputs`.
        output: folder of the results; made as needed.
        fidelity, upscale, force, aligned, only_center_face: see `PhotoRestorer.__call__`.
        again: restore also what is done already.
        settings: what else the outputs depend on, such as the model.
        extension, suffix, side_by_side, save_faces: see `Outputs`.
        progress: show a progress bar.
    """
    outputs = Outputs(output, extension, suffix, side_by_side, save_faces)
    how = dict(fidelity=fidelity, upscale=upscale, force=force, aligned=aligned, only_center_face=only_center_face)
    written_as = dict(side_by_side=side_by_side, extension=extension, suffix=suffix, save_faces=save_faces)
    made_by = {"guard": photos.guard and asdict(Limits()), **(settings or {})}
    journal = Journal(output, {**how, **written_as, **made_by})
    return _Run(photos, how, outputs, journal, progress).restore(find_inputs(sources, output), again)


@dataclass(frozen=True)
class _Waiting:
    """An aligned face that waits for its batch: the photo, its report and warnings, and the model's input."""

    job: Job
    photo: Image.Image
    report: FaceReport
    warnings: tuple[str, ...]
    crop: torch.Tensor  # [3, S, S]


@dataclass(frozen=True)
class _Read:
    """A photo and what `PhotoRestorer.judge` says of it."""

    photo: Image.Image
    aligned: bool
    found: list[Detection]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Writing:
    """A restored photo that is being written: the future of its path and of what could not be kept, and its facts."""

    job: Job
    written: "Future[tuple[Path, tuple[str, ...]]]"
    faces: Sequence[FaceReport]
    warnings: tuple[str, ...]
    facts: dict[str, Any]


class _Run:
    """Restores one job after another; aligned faces wait until a batch is full.

    While one photo is restored the next is read and its faces are found, and the one before is written, each in a
    thread of its own: memory holds three photos.
    """

    def __init__(self, photos: PhotoRestorer, how: dict, outputs: Outputs, journal: Journal, progress: bool):
        self.photos, self.how, self.outputs, self.journal, self.progress = photos, how, outputs, journal, progress
        self.inputs: set[str] = set()  # real paths, which nothing may overwrite
        self.outcome = Outcome()
        self.outcome.warnings += journal.warnings
        self.waiting: list[_Waiting] = []
        self.writing: _Writing | None = None
        self.alone = False  # one input: its error is the run's

    def restore(self, found: Found, again: bool) -> Outcome:
        """Restore the files that `find_inputs` found; `again` also what is done."""
        names = [name for _, name in found.files]
        targets = self.outputs.targets(names, containers(found.files))
        jobs = [Job(path, str(name), target) for (path, name), target in zip(found.files, targets, strict=True)]
        self.inputs = self.outputs.require_new([path for path, _ in found.files], targets)
        self.alone = len(jobs) == 1
        hidden = not self.progress or self.alone
        self.bar = tqdm(
            total=len(jobs), desc="restore", unit=" images", dynamic_ncols=True, disable=hidden, bar_format=BAR
        )
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as self.writer:
            for job, read in self._ahead((job for job in jobs if again or not self._kept(job)), reader):
                try:
                    self.add(job, read)
                except Exception as error:
                    self.skip(job, error)
            self.flush()
            self._finish()
        self.bar.close()
        for name, reason in found.ignored:
            self.journal.ignore(str(name), reason)
            self.outcome.ignored.append((str(name), reason))
        return self.outcome

    def _kept(self, job: Job) -> bool:
        """Return whether an earlier run has finished a job, and count it."""
        finished = self.journal.output_of(job.name, job.path)
        if finished:
            self.outcome.kept.append(finished)
            self.bar.update()
        return finished is not None

    def _ahead(self, jobs: Iterable[Job], reader: ThreadPoolExecutor) -> "Iterator[tuple[Job, Future[_Read] | None]]":
        """Yield each job with the future of its photo, the next photo being read; a video has none."""
        before: tuple[Job, Future[_Read] | None] | None = None
        for job in jobs:
            # a video calls the detector itself, which two threads must not do at once
            if before and before[1] is None:
                yield before
                before = None
            read = None if job.path.suffix.lower() in VIDEOS else reader.submit(self._read, job)
            if before:
                yield before
            before = job, read
        if before:
            yield before

    def _read(self, job: Job) -> _Read:
        require_short(job)
        photo, lost = read_photo(job.path, self.photos.max_megapixels)
        aligned, found, warnings = self.photos.judge(photo, self.how["aligned"])
        return _Read(photo, aligned, found, lost + warnings)

    def add(self, job: Job, read: "Future[_Read] | None") -> None:
        """Restore a job, or let it wait. Raises what is wrong with it."""
        if read is None:
            require_short(job)
            return self._video(job)
        one = read.result()
        if not one.aligned:
            return self._photo(job, one)
        report = report_of_aligned(one.photo, one.found, self.photos.resolution, self.how["force"])
        warnings = one.warnings + ((NOT_UPSCALED,) if self.how["upscale"] > 1 else ())
        waits = _Waiting(job, one.photo, report, warnings, self.photos.crop_of(one.photo))
        if report.status == "left":
            return self._aligned(waits, waits.crop)
        self.waiting.append(waits)
        if len(self.waiting) == self.photos.batch_size:
            self.flush()
        return None

    def flush(self) -> None:
        """Restore the aligned faces that wait, as one batch."""
        waiting, self.waiting = self.waiting, []
        if not waiting:
            return
        restored: Sequence[tuple[torch.Tensor, float] | None]
        try:
            restored = self._restored(waiting)
        except Exception:  # one of them, or too many at once: each by itself
            restored = [None] * len(waiting)
        for one, after in zip(waiting, restored, strict=True):
            try:
                face, seconds = after or self._restored([one])[0]
                self._aligned(one, face, seconds)
            except Exception as error:
                self.skip(one.job, error)

    def _restored(self, waiting: Sequence[_Waiting]) -> list[tuple[torch.Tensor, float]]:
        """Return each face `[3, S, S]` as the model restores it, and the seconds it took."""
        started = time.perf_counter()
        crops = torch.stack([one.crop for one in waiting])  # [B, 3, S, S]
        restored = self.photos.restore_crops(crops, self.how["fidelity"])  # [B, 3, S, S]
        return [(after, (time.perf_counter() - started) / len(restored)) for after in restored]

    def skip(self, job: Job, error: Exception) -> None:
        """Record an input that could not be restored; a mistake in the program is shown under LAFR_TRACEBACK."""
        if os.environ.get("LAFR_TRACEBACK") and not isinstance(error, InputError):
            raise error
        if not isinstance(error, InputError):
            said = (str(error).splitlines() or [""])[0]
            error = InputError(f"{str(job.path)!r} cannot be restored ({type(error).__name__}: {said})")
        self.journal.write(job.name, job.path, "skipped", reason=str(error))
        self.bar.update()
        if self.alone:
            raise error
        self.outcome.errors.append(error)

    def _aligned(self, one: _Waiting, after: torch.Tensor, seconds: float = 0.0) -> None:
        how = self.how["fidelity"], self.how["force"]
        image, report, crops = self.photos.aligned_result(one.photo, one.report, one.crop, after, *how)
        before = to_pil(one.crop) if report.status == "restored" else one.photo
        facts = dict(seconds=round(seconds, 3), aligned=True)
        self._write_later(one.job, (before, image), crops, [report], one.warnings, facts)

    def _photo(self, job: Job, one: _Read) -> None:
        result = self.photos.restore(one.photo, **{**self.how, "aligned": False}, detections=one.found)
        facts = dict(seconds=round(result.seconds, 3), aligned=False)
        self._write_later(job, (one.photo, result.image), result.crops, result.faces, one.warnings, facts)

    def _write_later(
        self,
        job: Job,
        pair: tuple[Image.Image, Image.Image],
        crops: Sequence[FaceCrops],
        faces: Sequence[FaceReport],
        warnings: tuple[str, ...],
        facts: dict[str, Any],
    ) -> None:
        """Write a restored photo while the next one is restored, once the one before it is written and recorded."""
        self._finish()
        written = self.writer.submit(self._write, job, *pair, crops, len(faces))
        self.writing = _Writing(job, written, faces, warnings, facts)

    def _write(
        self, job: Job, before: Image.Image, image: Image.Image, crops: Sequence[FaceCrops], number: int
    ) -> tuple[Path, tuple[str, ...]]:
        """Write a restored photo of `number` faces and what belongs to it; return its path and what it cannot keep."""
        place = photo_path(image, job.target)
        if place != job.target and os.path.realpath(place) in self.inputs:
            raise InputError(f"{str(place)!r} would be overwritten, as CMYK is written as TIFF; choose another folder")
        target, lost = write_photo(image, job.target)
        if self.outputs.side_by_side:
            write_photo(comparison(before, image), self.outputs.comparison(job.target))
        if self.outputs.save_faces:
            for one in crops:
                cropped, restored = self.outputs.faces(job.target, one.index)
                write_image(one.before, cropped)
                write_image(one.after, restored)
            for index in set(range(number)) - {one.index for one in crops}:  # left now, restored by an earlier run
                for path in self.outputs.faces(job.target, index):
                    path.unlink(missing_ok=True)
        return target, lost

    def _finish(self) -> None:
        """Record the photo that is being written, as soon as it is."""
        one, self.writing = self.writing, None
        if one is None:
            return
        try:
            target, lost = one.written.result()
        except Exception as error:
            return self.skip(one.job, error)
        self.outcome.count_photo(one.faces)
        self._note(one.job, target, one.warnings + lost, faces=[face_facts(face) for face in one.faces], **one.facts)

    def _video(self, job: Job) -> None:
        from lafr.photos.video import restore_video

        settings = {name: self.how[name] for name in ("fidelity", "only_center_face", "force", "upscale")}
        report = restore_video(job.path, job.target, self.photos, **settings, progress=self.progress)
        facts = dict(frames=report.frames, faces_restored=report.faces, tracks=report.tracks, copied=report.copied)
        self.outcome.videos += 1
        self.outcome.frames += report.frames
        self.outcome.video_faces += report.faces
        self.outcome.video_left.update(report.left)
        # what was asked for and is done to photos alone; comparisons are not named, as they are the default
        unused = {
            "its faces are not saved, only those of photos": self.outputs.save_faces,
            "it is restored frame by frame, not as an aligned face": self.how["aligned"] is True,
        }
        warnings = report.warnings + tuple(text for text, was_asked in unused.items() if was_asked)
        self._note(job, job.target, warnings, **facts, left=report.left, seconds=round(report.seconds, 3))

    def _note(self, job: Job, target: Path, warnings: tuple[str, ...], **facts: Any) -> None:
        output = target.relative_to(self.journal.path.parent)
        self.journal.write(job.name, job.path, "done", output=str(output), **facts, warnings=list(warnings))
        self.outcome.done.append(target)
        self.outcome.warnings += [f"{job.name!r}: {warning}" for warning in warnings if warning != NO_FACE]
        self.bar.update()


def require_short(job: Job) -> None:
    """Raise InputError when an output of this name cannot be written."""
    if len(os.fsencode(job.target.name)) > LONGEST_NAME:
        raise InputError(f"{str(job.path)!r} has a name too long to write an output of a similar name; rename it")


def containers(files: Sequence[tuple[Path, Path]]) -> dict[Path, str]:
    """Return the extension of each video's output, by its name; without PyAV videos are reported when they are read."""
    videos = [(path, name) for path, name in files if path.suffix.lower() in VIDEOS]
    if not videos:
        return {}
    from lafr.photos.video import container_for

    return {name: container_for(path) for path, name in videos}


def comparison(before: Image.Image, after: Image.Image) -> Image.Image:
    """Return before | after in RGB, each at most `COMPARISON_SIDE` px wide or high."""
    pair = [to_rgb(upright(image)) for image in (before, after)]
    shrink = max(1.0, max(pair[1].size) / COMPARISON_SIDE)
    width, height = (max(1, round(side / shrink)) for side in pair[1].size)
    both = Image.new("RGB", (2 * width, height))
    for column, image in enumerate(pair):
        half = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
        both.paste(half, (column * width, 0))
    return both


REMEDIES = {  # kind of reason -> the setting that restores such a face all the same
    "too small": setting("force"),
    LARGE: setting("force"),
    "in profile": setting("force"),
    "cut by the border": setting("force"),
    OTHER: setting("guard", False),
    SHARP: setting("force"),
}


def print_outcome(outcome: Outcome, output: str | Path, quiet: bool = False, spell: Spell = as_python) -> bool:
    """Print what a run did, with `quiet` only what was skipped; returns whether nothing was skipped."""
    for error in outcome.errors:
        print(f"skipped: {error.spelled(spell)}", file=sys.stderr)
    if not quiet:
        _print_some([f"warning: {printable(text)}" for text in outcome.warnings])
        _print_some([f"ignored: {name!r}, {reason}" for name, reason in outcome.ignored])
        for line in summary(outcome, spell):
            print(line)
        total = len(outcome.done) + len(outcome.kept) + len(outcome.errors)
        kept = f" ({len(outcome.kept)} were done already)" if outcome.kept else ""
        print(f"wrote {len(outcome.done)} of {total} into {printable(str(output))}{kept}")
    return not outcome.errors


def summary(outcome: Outcome, spell: Spell = as_python) -> list[str]:
    """Return in a line each what was done to the faces of photos and of videos."""
    lines = []
    if outcome.photos:
        lines.append(
            f"{counted(outcome.photos, 'photo')}: {counted(outcome.faces, 'face')} restored, "
            f"{_left(outcome.left, spell)}, {outcome.without_face} without a face"
        )
    if outcome.videos:
        lines.append(
            f"{counted(outcome.videos, 'video')}: {counted(outcome.video_faces, 'face')} restored in "
            f"{counted(outcome.frames, 'frame')}, {_left(outcome.video_left, spell)}"
        )
    return lines


def _left(left: Counter[str], spell: Spell) -> str:
    """Return how many faces were left, why, and what restores them all the same."""
    kinds = []
    for kind, count in left.most_common():
        remedy = InputError(REMEDIES[kind]).spelled(spell) if kind in REMEDIES else ""
        number = f"{count} " if len(left) > 1 else ""  # the only count is the sum
        kinds.append(f"{number}{kind}{'; ' if remedy else ''}{remedy}")
    why = f" ({', '.join(kinds)})" if kinds else ""
    return f"{left.total()} left as {'it was' if left.total() == 1 else 'they were'}{why}"


def counted(number: int, what: str) -> str:
    """Return "1 face", "2 faces"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Return text that any terminal takes: a file's name may hold bytes that are no text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _print_some(lines: Sequence[str]) -> None:
    for line in lines[:MOST_LINES]:
        print(line, file=sys.stderr)
    if len(lines) > MOST_LINES:
        print(f"... and {len(lines) - MOST_LINES} more, see restored.jsonl", file=sys.stderr)
