"""Restore files: photos, aligned faces and videos into a folder, aligned faces in batches over the files."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from lafr.errors import InputError
from lafr.images import read_photo, to_rgb, upright, write_image, write_photo
from lafr.photos.files import LONGEST_NAME, VIDEOS, find_inputs, output_paths, require_new
from lafr.photos.journal import Journal, face_facts
from lafr.photos.restorer import PhotoRestorer

BESIDE_SIDE = 1600  # pixels: a photo in a side-by-side picture is shrunk to this


@dataclass
class Outcome:
    """What a run did: files written, files that an earlier run had written, and a message for each file skipped."""

    done: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """One input and its places: its name, its output and its side-by-side picture."""

    path: Path
    name: str
    target: Path
    beside: Path


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
) -> Outcome:
    """Restore `sources`, files, folders or patterns, into `output` under the same relative names, as PNG.

    What cannot be read is skipped; when there is one file only, its InputError is raised. Each file's line in
    `output/restored.jsonl` says what was found in it; a file that an earlier run finished is not restored again. With
    `side_by_side`, before | after is written into `output/side_by_side`.

    Args:
        photos: does the work; its `batch_size` counts faces.
        fidelity, upscale, force, aligned: see `PhotoRestorer`.
        again: restore also what is done.
        settings: what the outputs depend on besides these arguments, such as the model.
    """
    found = find_inputs(sources, output)
    targets = output_paths([name for _, name in found], output)
    jobs = [
        Job(path, str(name), target, output / "side_by_side" / target.relative_to(output))
        for (path, name), target in zip(found, targets, strict=True)
    ]
    outputs = [*targets, *([job.beside for job in jobs] if side_by_side else [])]
    inputs = require_new([path for path, _ in found], outputs)
    how = dict(fidelity=fidelity, upscale=upscale, force=force, aligned=aligned)
    journal = Journal(output, {**how, "side_by_side": side_by_side, **(settings or {})})
    run = _Run(photos, how, side_by_side, journal, inputs)
    bar = tqdm(
        total=len(jobs), desc="restore", unit=" images", dynamic_ncols=True, disable=len(jobs) == 1,
        bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]",
    )  # fmt: skip
    for job in jobs:
        if not again and (finished := journal.output_of(job.name, job.path)):
            run.outcome.kept.append(finished)
            bar.update()
            continue
        try:
            bar.update(run.add(job))
        except InputError as error:
            if len(jobs) == 1:
                raise
            journal.write(job.name, job.path, "skipped", reason=str(error))
            run.outcome.skipped.append(str(error))
            bar.update()
    bar.update(run.flush())
    bar.close()
    return run.outcome


class _Run:
    """Restores one job after another; aligned faces wait until a batch is full."""

    def __init__(self, photos: PhotoRestorer, how: dict, side_by_side: bool, journal: Journal, inputs: set[str]):
        self.photos, self.how, self.side_by_side, self.journal, self.inputs = photos, how, side_by_side, journal, inputs
        self.outcome = Outcome()
        self.waiting: list[tuple[Job, torch.Tensor, dict]] = []

    def add(self, job: Job) -> int:
        """Restore a job, or let it wait; returns how many were finished. InputError when it cannot be read."""
        if len(os.fsencode(job.path.name)) > LONGEST_NAME:
            raise InputError(f"{str(job.path)!r} has a name too long to write another beside it; rename it")
        if job.path.suffix.lower() in VIDEOS:
            return self._video(job)
        photo, lost = read_photo(job.path)
        aligned, found, warnings = self.photos.judge(photo, self.how["aligned"])
        if not aligned:
            return self._photo(job, photo, found, lost + warnings)
        crop = self.photos.crop_of(photo)
        faces = [face_facts(self.photos.whole(photo, found))]
        self.waiting.append((job, crop, {"aligned": True, "faces": faces, "warnings": lost + warnings}))
        return self.flush() if len(self.waiting) == self.photos.batch_size else 0

    def flush(self) -> int:
        """Restore the aligned faces that wait, as one batch; returns how many."""
        if not self.waiting:
            return 0
        started = time.perf_counter()
        restored = self.photos.restore_crops(torch.stack([crop for _, crop, _ in self.waiting]), self.how["fidelity"])
        seconds = (time.perf_counter() - started) / len(restored)
        for (job, before, facts), after in zip(self.waiting, restored, strict=True):
            write_image(after, job.target)
            if self.side_by_side:
                write_image(torch.cat([before, after], dim=2), job.beside)
            self._finish(job, job.target, seconds=round(seconds, 3), **facts)
        count = len(self.waiting)
        self.waiting.clear()
        return count

    def _photo(self, job: Job, photo: Image.Image, found: list, warnings: tuple[str, ...]) -> int:
        result = self.photos(photo, **{**self.how, "aligned": False}, detections=found)
        if result.image.mode == "CMYK" and os.path.realpath(job.target.with_suffix(".tif")) in self.inputs:
            raise InputError(
                f"{str(job.path)!r} would be overwritten, as CMYK is written as TIFF; choose another folder"
            )
        target = write_photo(result.image, job.target)
        if self.side_by_side:
            write_image(beside(photo, result.image), job.beside)
        faces = [face_facts(face) for face in result.faces]
        self._finish(job, target, seconds=round(result.seconds, 3), aligned=False, faces=faces, warnings=[*warnings])
        return 1

    def _video(self, job: Job) -> int:
        from lafr.photos.video import restore_video

        started = time.perf_counter()
        restore_video(job.path, job.target, self.photos, fidelity=self.how["fidelity"])
        self._finish(job, job.target, seconds=round(time.perf_counter() - started, 3))
        return 1

    def _finish(self, job: Job, target: Path, **facts) -> None:
        output = target.relative_to(self.journal.path.parent)
        self.journal.write(job.name, job.path, "done", output=str(output), **facts)
        self.outcome.done.append(target)


def beside(before: Image.Image, after: Image.Image) -> Image.Image:
    """Return before | after in RGB, each at most `BESIDE_SIDE` px wide or high."""
    pair = [to_rgb(upright(image)) for image in (before, after)]
    shrink = max(1.0, max(pair[1].size) / BESIDE_SIDE)
    size = tuple(max(1, round(side / shrink)) for side in pair[1].size)
    both = Image.new("RGB", (2 * size[0], size[1]))
    for column, image in enumerate(pair):
        both.paste(image if image.size == size else image.resize(size, Image.Resampling.LANCZOS), (column * size[0], 0))
    return both


def report(outcome: Outcome, output: str | Path) -> bool:
    """Print what a run did; returns whether nothing was skipped."""
    for message in outcome.skipped:
        print(f"skipped: {message}", file=sys.stderr)
    total = len(outcome.done) + len(outcome.kept) + len(outcome.skipped)
    kept = f" ({len(outcome.kept)} were done already)" if outcome.kept else ""
    print(f"restored {len(outcome.done)} of {total} into {output}{kept}")
    return not outcome.skipped
