"""Whole photos: find the faces, align them, restore them in batches, paste them back; all other pixels are kept."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lafr.alignment import crop
from lafr.errors import InputError, require_whole
from lafr.images import (
    MAX_MEGAPIXELS,
    ImageLike,
    aligned_input,
    as_images,
    from_pil,
    read_photo,
    require_square,
    to_pil,
    to_rgb,
    upright,
)
from lafr.photos import guard
from lafr.photos.canvas import Canvas, in_kind_of
from lafr.photos.detectors import Detection, detector_named
from lafr.photos.faces import (
    LARGEST,
    UNSEEN,
    FaceReport,
    aligned_is_sharp,
    centre_face,
    looks_aligned,
    may_overlap,
    report_of_aligned,
    reports_of,
)
from lafr.photos.pasting import Place, ellipse, match_colours, share_of
from lafr.photos.sharpness import held_detail

if TYPE_CHECKING:
    from lafr.models.restorer import Restorer

Progress = Callable[[int, int], None]  # (faces done, faces to do)
NOT_UPSCALED = "an aligned face gets the model's size, and is not upscaled"


@dataclass(frozen=True)
class FaceCrops:
    """A restored face: its `index` among the reports, and its aligned crop `before` and `after` in the model's size."""

    index: int
    before: Image.Image
    after: Image.Image


@dataclass(frozen=True)
class PhotoResult:
    """A restored photo: same mode as given, `upscale` times its size, with its metadata; a report for each face.

    With `aligned` the photo was one face's crop, and `image` has the model's resolution where it was restored. `crops`
    are the faces that were restored.
    """

    image: Image.Image
    faces: list[FaceReport]
    aligned: bool
    seconds: float
    warnings: tuple[str, ...] = ()
    crops: tuple[FaceCrops, ...] = ()


class PhotoRestorer:
    """Restores the faces of whole photos, and aligned faces as they are.

    >>> from PIL import Image, ImageFilter
    >>> from lafr import PhotoRestorer, Restorer
    >>> from lafr.weights import locate
    >>> photo = Image.open(locate("astronaut")).filter(ImageFilter.GaussianBlur(2))
    >>> result = PhotoRestorer(Restorer.from_pretrained("mini"))(photo)
    >>> [face.status for face in result.faces]
    ['restored']
    >>> result.image.size
    (512, 512)

    Args:
        restorer: a `lafr.Restorer`, on its device.
        detector: maps an upright RGB image to `Detection`s, see `lafr.photos.detectors`; YuNet at any roll when
            None.
        batch_size: faces restored at once.
        mask: maps a restored crop `[3, S, S]` in [-1, 1] to its share `[S, S]` in [0, 1], zero along the edge.
        upscaler: enlarges the rest of the photo: maps (RGB image, 2 or 4) to the larger image; Lanczos when None.
        equal_batches: fill the last batch with copies, for a compiled restorer.
        guard: leave a face whose restoration looks like another person or that was as sharp before, see
            `lafr.photos.guard` and `lafr.photos.sharpness`.
        max_megapixels: of a photo that is read from a file.
    """

    def __init__(
        self,
        restorer: "Restorer",
        detector: Callable[[Image.Image], list[Detection]] | None = None,
        batch_size: int = 8,
        mask: Callable[[Tensor], np.ndarray] = ellipse,
        upscaler: Callable[[Image.Image, int], Image.Image] | None = None,
        equal_batches: bool = False,
        guard: bool = True,
        max_megapixels: float = MAX_MEGAPIXELS,
    ):
        require_whole(1, batch_size=batch_size)
        if not max_megapixels > 0:  # also false for NaN, which no photo would exceed
            raise InputError("max_megapixels", max_megapixels, "a number above 0")
        self.guard, self.max_megapixels = guard, max_megapixels
        self.restorer, self.detector, self.batch_size = restorer, detector or detector_named("yunet"), batch_size
        self.mask, self.upscaler, self.equal_batches = mask, upscaler, equal_batches

    @property
    def resolution(self) -> int:
        """Side in pixels of the crops that the model restores."""
        return self.restorer.resolution

    def __call__(
        self,
        photo: ImageLike | Sequence[ImageLike],
        fidelity: float = 0.0,
        upscale: int = 1,
        force: bool = False,
        aligned: bool | str = "auto",
        only: Sequence[int] | None = None,
        detections: Sequence[Detection] | None = None,
        only_center_face: bool = False,
        limits: Sequence[guard.Limits] | None = None,
        progress: Progress | None = None,
    ) -> PhotoResult | list[PhotoResult]:
        """Restore a photo, or each of a list; a list (or a batch) returns a list.

        Args:
            photo: PIL image of any mode, path, uint8 array `[H, W, 3]`, float tensor `[3, H, W]` in [-1, 1], or a list
                of them. EXIF orientation is applied. What is given is not changed.
            fidelity: 0 restores as trained, 1 stays nearest the input.
            upscale: 1, 2 or 4 times the photo's size; an aligned face gets the model's size.
            force: also restore faces that are sharp, too small, in profile or cut by the border.
            aligned: whether the photo is one face in FFHQ's alignment; "auto" judges by its shape and its face.
            only: indexes of the faces to restore, in the order of the report; all when None.
            detections: the faces, when they are known already (`detect`).
            only_center_face: restore only the face nearest to the photo's middle.
            limits: for each of `detections`; the guard's own when None.
            progress: called with the number of a photo's faces that are restored and of those to restore, first with 0
                and then after each batch.

        Raises InputError for a photo that cannot be read and for a wrong argument.
        """
        how: dict[str, Any] = dict(fidelity=fidelity, upscale=upscale, force=force, aligned=aligned, only=only)
        how |= dict(detections=detections, only_center_face=only_center_face, limits=limits)
        how |= dict(progress=progress)
        if isinstance(photo, list | tuple):
            return [self._restore_one(one, **how) for one in photo]
        if isinstance(photo, np.ndarray | Tensor) and photo.ndim == 4:
            return [self._restore_one(one, **how) for one in photo]
        return self._restore_one(photo, **how)

    def _restore_one(self, photo: Any, **how: Any) -> PhotoResult:
        if isinstance(photo, str | os.PathLike):
            opened, lost = read_photo(photo, self.max_megapixels)
            result = self.restore(opened, **how)
            return replace(result, warnings=lost + result.warnings)
        image = as_images([photo])[0]
        return self.restore(to_pil(image) if isinstance(image, Tensor) else image, **how)

    def restore(
        self,
        photo: Image.Image,
        fidelity: float = 0.0,
        upscale: int = 1,
        force: bool = False,
        aligned: bool | str = "auto",
        only: Sequence[int] | None = None,
        detections: Sequence[Detection] | None = None,
        only_center_face: bool = False,
        limits: Sequence[guard.Limits] | None = None,
        progress: Progress | None = None,
    ) -> PhotoResult:
        """Restore one PIL image; arguments as in a call."""
        if upscale not in (1, 2, 4):
            raise InputError("upscale", upscale, "1, 2 or 4")
        if only_center_face and only is not None:
            raise InputError("only", list(only), "None where only the centre face is restored")
        started = time.perf_counter()
        photo = upright(photo)
        is_aligned, found, warnings = self.judge(photo, aligned, detections)
        if is_aligned:
            report = report_of_aligned(photo, found, self.resolution, force)
            before = self.crop_of(photo)  # [3, S, S]
            after = self.restore_crops(before[None], fidelity, progress)[0] if report.status == "restored" else before
            image, report, crops = self.aligned_result(photo, report, before, after, fidelity, force)
            faces = [report]
            warnings += (NOT_UPSCALED,) if upscale > 1 else ()
        else:
            chosen = centre_face(found, photo.size) if only_center_face else only
            how = (fidelity, upscale, force, chosen, limits, progress)
            image, faces, crops = self.restore_faces(photo, found, *how)
        return PhotoResult(image, faces, is_aligned, time.perf_counter() - started, warnings, crops)

    def detect(self, photo: Image.Image) -> list[Detection]:
        """Return the faces of a photo from left to right, in pixels of the upright photo."""
        return self.detector(to_rgb(upright(photo)))

    def judge(
        self, photo: Image.Image, aligned: bool | str = "auto", detections: Sequence[Detection] | None = None
    ) -> tuple[bool, list[Detection], tuple[str, ...]]:
        """Return whether an upright photo is one aligned face, the faces found, and warnings.

        In "auto" a square photo is aligned when its largest face lies where FFHQ's alignment puts it; and when no face
        is found in it and its side is within `UNSEEN`: strong degradations hide a face from a detector (4 of 80).
        """
        if aligned not in (True, False, "auto"):
            raise InputError("aligned", aligned, 'True, False or "auto"')
        if aligned is True:
            require_square(photo, "the image")
            return True, list(detections or ()), ()
        may_be_aligned = aligned == "auto" and abs(photo.width - photo.height) <= 1
        try:
            found = self.detect(photo) if detections is None else list(detections)
        except InputError as missing:
            if may_be_aligned:
                return True, [], (f"taken for an aligned face without detection, as {missing}",)
            raise
        if may_be_aligned and not found and UNSEEN[0] <= photo.width <= UNSEEN[1]:
            return True, [], ("no face found; taken for an aligned face because it is square",)
        if may_be_aligned and looks_aligned(found, photo.size, self.resolution):
            if min(photo.size) > LARGEST * self.resolution and aligned_is_sharp(photo, self.resolution):
                return False, found, ()  # it would lose detail and size; as a photo it keeps both
            return True, found, ()
        return False, found, () if found else ("no face found",)

    def aligned_result(
        self,
        photo: Image.Image,
        report: FaceReport,
        before: Tensor,
        after: Tensor,
        fidelity: float = 0.0,
        force: bool = False,
    ) -> tuple[Image.Image, FaceReport, tuple[FaceCrops, ...]]:
        """Return image, report and crops of an aligned face `before [3, S, S]` that the model restored as `after`.

        The image is gray and transparent where the photo is, and has its metadata; of a face that is left it is the
        photo itself.
        """
        (report,) = self._checked([report], before[None], after[None], None, fidelity, force)
        if report.status != "restored":
            return photo.copy(), report, ()
        return in_kind_of(photo, to_pil(after)), report, (FaceCrops(0, to_pil(before), to_pil(after)),)

    def _checked(
        self,
        reports: list[FaceReport],
        befores: Tensor,
        afters: Tensor,
        limits: Sequence[guard.Limits] | None,
        fidelity: float,
        force: bool,
    ) -> list[FaceReport]:
        """Return reports in which a restored face is left when its pixels are not finite or the guard says so."""
        from lafr.models.restorer import share_of_input  # not above: it loads diffusers

        finite = torch.isfinite(afters).flatten(1).all(1)
        likeness: list[float | None] = [None] * len(reports)
        held: list[float | None] = [None] * len(reports)
        if self.guard and any(report.status == "restored" for report in reports):
            likeness[:] = guard.likeness(befores, afters.nan_to_num())
            held[:] = held_detail(befores, afters.nan_to_num(), share_of_input(fidelity))
        checked = []
        own = limits or [guard.Limits()] * len(reports)
        for report, is_finite, alike, detail, within in zip(reports, finite.tolist(), likeness, held, own, strict=True):
            reason = "" if is_finite else "not finite: the model returned NaN or infinity for it"
            reason = reason or guard.reason_to_leave(alike, None if force else detail, within)
            if report.status == "restored":
                report = replace(report, likeness=alike, held_detail=detail) if is_finite else report
                report = replace(report, status="left", reason=reason) if reason else report
            checked.append(report)
        return checked

    def crop_of(self, photo: Image.Image) -> Tensor:
        """Return an aligned face as the model reads it: `[3, S, S]` in [-1, 1]; InputError when it isn't square."""
        return aligned_input(photo, self.resolution, "the image")

    @torch.no_grad()
    def restore_crops(self, crops: Tensor, fidelity: float = 0.0, progress: Progress | None = None) -> Tensor:
        """Restore crops `[N, 3, S, S]` in batches; returns the same shape, not clamped, on the CPU."""
        report = progress or (lambda done, total: None)
        report(0, len(crops))
        device = next(self.restorer.parameters()).device
        options = {"fidelity": fidelity} if fidelity else {}
        restored: list[Tensor] = []
        for batch in crops.split(self.batch_size):
            full = batch[torch.arange(self.batch_size) % len(batch)] if self.equal_batches else batch
            restored.append(self.restorer(full.to(device), **options)[: len(batch)].float().cpu())
            report(sum(map(len, restored)), len(crops))
        return torch.cat(restored) if restored else crops

    def restore_faces(
        self,
        photo: Image.Image,
        detections: Sequence[Detection],
        fidelity: float = 0.0,
        upscale: int = 1,
        force: bool = False,
        only: Sequence[int] | None = None,
        limits: Sequence[guard.Limits] | None = None,
        progress: Progress | None = None,
    ) -> tuple[Image.Image, list[FaceReport], tuple[FaceCrops, ...]]:
        """Restore these faces of an upright photo; returns the photo, what became of each face, and the crops.

        Arguments as in a call. Video uses it with points that are smoothed over time.
        """
        reports = reports_of(detections, photo, self.resolution, force, only, limits)
        canvas = Canvas(photo, upscale, self.upscaler)
        chosen = [index for index, report in enumerate(reports) if report.status == "restored"]
        if not chosen:
            return canvas.image(), reports, ()
        whole = Image.fromarray(canvas.rgb)
        befores = [crop(whole, reports[index].points, self.resolution)[0] for index in chosen]
        inputs = torch.stack([from_pil(before) for before in befores])  # [N, 3, S, S]
        afters = self.restore_crops(inputs, fidelity, progress)  # [N, 3, S, S]
        own = None if limits is None else [limits[index] for index in chosen]
        checked = self._checked([reports[index] for index in chosen], inputs, afters, own, fidelity, force)
        for index, report in zip(chosen, checked, strict=True):
            reports[index] = report
        places = [Place.of(report.points, upscale) for report in reports]
        crops = []
        for index, before, after in zip(chosen, befores, afters, strict=True):
            if reports[index].status != "restored":
                continue
            others = [
                places[other]
                for other, report in enumerate(reports)
                if other != index and may_overlap(report, reports[index])
            ]
            self._paste(canvas, places[index], others, before, after)
            crops.append(FaceCrops(index, before, to_pil(after)))
        return canvas.image(), reports, tuple(crops)

    def _paste(self, canvas: Canvas, place: Place, others: list[Place], before: Image.Image, face: Tensor) -> None:
        box = place.box(canvas.size)
        restored = (face.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5  # [S, S, 3] in 0..255
        coloured = match_colours(restored, np.asarray(before))
        canvas.blend(box, place.warp(coloured, box), share_of(place, self.mask(face), others, box))
