"""Restore files: photos, aligned faces and videos into a folder; aligned faces are batched over the files."""

import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from lafr.errors import InputError
from lafr.images import photo_path, read_photo, to_pil, to_rgb, upright, write_image, write_photo
from lafr.photos.detectors import Detection
from lafr.photos.faces import report_of_aligned
from lafr.photos.files import LONGEST_NAME, VIDEOS, Outputs, find_inputs
from lafr.photos.journal import Journal, face_facts
from lafr.photos.restorer import FaceCrops, PhotoRestorer

COMPARISON_SIDE = 1600  # pixels: longest side of each half of a before | after image
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


@dataclass
class Outcome:
    """What a run did: files written, files that an earlier run had written, and a message for each file skipped."""

    done: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


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

    A file that cannot be read is skipped and reported; when it is the only one, its InputError is raised. A line of
    `output/restored.jsonl` records what was found in each file; a file that an earlier run finished under the same
    settings is not restored again.

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
    journal = Journal(output, {**how, **written_as, **(settings or {})})
    return _Run(photos, how, outputs, journal, progress).restore(find_inputs(sources, output), again)


@dataclass(frozen=True)
class _Waiting:
    """An aligned face that waits for its batch: the model's input `crop [3, S, S]`, and facts for the journal."""

    job: Job
    crop: torch.Tensor
    facts: dict


class _Run:
    """Restores one job after another; aligned faces wait until a batch is full."""

    def __init__(self, photos: PhotoRestorer, how: dict, outputs: Outputs, journal: Journal, progress: bool):
        self.photos, self.how, self.outputs, self.journal, self.progress = photos, how, outputs, journal, progress
        self.inputs: set[str] = set()  # real paths, which nothing may overwrite
        self.outcome = Outcome()
        self.waiting: list[_Waiting] = []

    def restore(self, found: Sequence[tuple[Path, Path]], again: bool) -> Outcome:
        """Restore the files that `find_inputs` found; `again` also what is done."""
        targets = self.outputs.targets([name for _, name in found])
        jobs = [Job(path, str(name), target) for (path, name), target in zip(found, targets, strict=True)]
        self.inputs = self.outputs.require_new([path for path, _ in found], targets)
        hidden = not self.progress or len(jobs) == 1
        bar = tqdm(total=len(jobs), desc="restore", unit=" images", dynamic_ncols=True, disable=hidden, bar_format=BAR)
        for job in jobs:
            finished = None if again else self.journal.output_of(job.name, job.path)
            if finished:
                self.outcome.kept.append(finished)
                bar.update()
                continue
            try:
                bar.update(self.add(job))
            except InputError as error:
                if len(jobs) == 1:
                    raise
                self.skip(job, error)
                bar.update()
        bar.update(self.flush())
        bar.close()
        return self.outcome

    def add(self, job: Job) -> int:
        """Restore a job, or let it wait; returns how many were finished. InputError when it cannot be read."""
        if len(os.fsencode(job.target.name)) > LONGEST_NAME:
            raise InputError(f"{str(job.path)!r} has a name too long to write an output of a similar name; rename it")
        if job.path.suffix.lower() in VIDEOS:
            return self._video(job)
        photo, lost = read_photo(job.path)
        aligned, found, warnings = self.photos.judge(photo, self.how["aligned"])
        if not aligned:
            return self._photo(job, photo, found, lost + warnings)
        faces = [face_facts(report_of_aligned(photo, found))]
        facts = {"aligned": True, "faces": faces, "warnings": lost + warnings}
        self.waiting.append(_Waiting(job, self.photos.crop_of(photo), facts))
        return self.flush() if len(self.waiting) == self.photos.batch_size else 0

    def flush(self) -> int:
        """Restore the aligned faces that wait, as one batch; returns how many."""
        if not self.waiting:
            return 0
        started = time.perf_counter()
        crops = torch.stack([one.crop for one in self.waiting])  # [B, 3, S, S]
        restored = self.photos.restore_crops(crops, self.how["fidelity"])  # [B, 3, S, S]
        seconds = (time.perf_counter() - started) / len(restored)
        for one, after in zip(self.waiting, restored, strict=True):
            write_photo(to_pil(after), one.job.target)
            if self.outputs.side_by_side:
                pair = to_pil(torch.cat([one.crop, after], dim=2))
                write_photo(pair, self.outputs.comparison(one.job.target))
            self._write_faces(one.job, [FaceCrops(0, to_pil(one.crop), to_pil(after))])
            self._finish(one.job, one.job.target, seconds=round(seconds, 3), **one.facts)
        count = len(self.waiting)
        self.waiting.clear()
        return count

    def skip(self, job: Job, error: InputError) -> None:
        """Record an input that could not be restored."""
        self.journal.write(job.name, job.path, "skipped", reason=str(error))
        self.outcome.skipped.append(str(error))

    def _photo(self, job: Job, photo: Image.Image, found: list[Detection], warnings: tuple[str, ...]) -> int:
        result = self.photos.restore(photo, **{**self.how, "aligned": False}, detections=found)
        place = photo_path(result.image, job.target)
        if place != job.target and os.path.realpath(place) in self.inputs:
            raise InputError(f"{str(place)!r} would be overwritten, as CMYK is written as TIFF; choose another folder")
        target = write_photo(result.image, job.target)
        if self.outputs.side_by_side:
            write_photo(comparison(photo, result.image), self.outputs.comparison(job.target))
        self._write_faces(job, result.crops)
        faces = [face_facts(face) for face in result.faces]
        self._finish(job, target, seconds=round(result.seconds, 3), aligned=False, faces=faces, warnings=[*warnings])
        return 1

    def _video(self, job: Job) -> int:
        from lafr.photos.video import restore_video

        started = time.perf_counter()
        settings = {name: self.how[name] for name in ("fidelity", "only_center_face")}
        restore_video(job.path, job.target, self.photos, **settings, progress=self.progress)
        self._finish(job, job.target, seconds=round(time.perf_counter() - started, 3))
        return 1

    def _write_faces(self, job: Job, crops: Iterable[FaceCrops]) -> None:
        if self.outputs.save_faces:
            for one in crops:
                cropped, restored = self.outputs.faces(job.target, one.index)
                write_image(one.before, cropped)
                write_image(one.after, restored)

    def _finish(self, job: Job, target: Path, **facts) -> None:
        output = target.relative_to(self.journal.path.parent)
        self.journal.write(job.name, job.path, "done", output=str(output), **facts)
        self.outcome.done.append(target)


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


def print_outcome(outcome: Outcome, output: str | Path, quiet: bool = False) -> bool:
    """Print what a run did, with `quiet` only what was skipped; returns whether nothing was skipped."""
    for message in outcome.skipped:
        print(f"skipped: {message}", file=sys.stderr)
    if not quiet:
        total = len(outcome.done) + len(outcome.kept) + len(outcome.skipped)
        kept = f" ({len(outcome.kept)} were done already)" if outcome.kept else ""
        print(f"restored {len(outcome.done)} of {total} into {output}{kept}")
    return not outcome.skipped
