"""A whole photo: find the faces, align them, restore them in batches, put them back; the rest stays as it is."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lafr.alignment import FFHQ_512, crop, template_distance, yaw
from lafr.errors import InputError
from lafr.images import from_pil, require_square, resize_pil, to_pil, to_rgb, upright
from lafr.photos.canvas import Canvas
from lafr.photos.detectors import Detection, YuNet, shared
from lafr.photos.pasting import Place, ellipse, matched, share_of

SMALLEST = 24  # pixels of a face's box: below, there is nothing to restore from
LARGEST = 1.5  # native crop over the model's side: above, restoring would take sharpness away
PROFILE = 65  # degrees to the side: the training faces end about there
OUTSIDE = 0.3  # share of the face that the border cuts off
# Mean distance of the five points from FFHQ's, in sides of the picture, up to which it is aligned. Of 80 aligned faces
# that trained nothing all lie within 0.046; degraded, 95 % within 0.073 and all within 0.16, as blur moves the points.
ALIGNED = 0.08
ALIGNED_SAME_SIZE = 0.2  # in a square of just the model's side
UNSEEN = (16, 512)  # sides of a square in which no face is found and which is still taken for an aligned one


@dataclass(frozen=True)
class FaceReport:
    """What became of one face.

    `box` (x0, y0, x1, y1) and `points [5, 2]` are in pixels of the upright photo, `side` is that of its aligned crop.
    `status` is "restored", or "left" with the `reason`.
    """

    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float
    side: float
    status: str
    reason: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class PhotoResult:
    """A photo restored: same mode as given, `upscale` times its size, with its metadata; and a report for each face.

    With `aligned` the picture was one face's crop, and `image` is RGB at the model's resolution.
    """

    image: Image.Image
    faces: list[FaceReport]
    aligned: bool
    seconds: float
    warnings: tuple[str, ...] = ()


class PhotoRestorer:
    """Restores the faces of whole photos, and aligned faces as they are.

    Args:
        restorer: a `lafr.Restorer`, on its device.
        detector: maps an upright RGB picture to `Detection`s, see `lafr.photos.detectors`; YuNet when None.
        batch_size: faces restored at once.
        mask: maps a restored crop `[3, S, S]` in [-1, 1] to its share `[S, S]` in [0, 1], zero along the edge.
        upscaler: enlarges the rest of the photo: maps (RGB picture, 2 or 4) to the larger picture; Lanczos when None.
        equal_batches: fill the last batch with copies, for a compiled restorer.
    """

    def __init__(
        self,
        restorer,
        detector: Callable[[Image.Image], list[Detection]] | None = None,
        batch_size: int = 8,
        mask: Callable[[Tensor], np.ndarray] = ellipse,
        upscaler: Callable[[Image.Image, int], Image.Image] | None = None,
        equal_batches: bool = False,
    ):
        self.restorer, self.detector, self.batch_size = restorer, detector or YuNet(), batch_size
        self.mask, self.upscaler, self.equal_batches = mask, upscaler, equal_batches

    @property
    def resolution(self) -> int:
        """Side in pixels of the crops that the model restores."""
        return self.restorer.resolution

    def __call__(
        self,
        photo: Image.Image,
        fidelity: float = 0.0,
        upscale: int = 1,
        force: bool = False,
        aligned: bool | str = "auto",
        only: Sequence[int] | None = None,
        detections: Sequence[Detection] | None = None,
    ) -> PhotoResult:
        """Restore a photo.

        Args:
            photo: of any mode; EXIF orientation is applied. It isn't changed.
            fidelity: 0 restores as trained, 1 stays nearest the input.
            upscale: 1, 2 or 4 times the photo's size; an aligned face keeps the model's.
            force: also restore faces that are larger than the model can better, in profile or cut by the border.
            aligned: whether the picture is one face in FFHQ's alignment; "auto" tells by its shape and its face.
            only: indexes of the faces to restore, in the order of the report; all when None.
            detections: the faces, when they are known already (`detect`).
        """
        if upscale not in (1, 2, 4):
            raise InputError(f"upscale={upscale} is not offered; choose 1, 2 or 4")
        started = time.perf_counter()
        photo = upright(photo)
        aligned, found, warnings = self.judge(photo, aligned, detections)
        if aligned:
            image = to_pil(self.restore_aligned([photo], fidelity)[0])
            faces = [self.whole(photo, found)]
        else:
            image, faces = self.restore_faces(photo, found, fidelity, upscale, force, only)
        return PhotoResult(image, faces, aligned, time.perf_counter() - started, warnings)

    def detect(self, photo: Image.Image) -> list[Detection]:
        """Return the faces of a photo from left to right, in pixels of the upright photo."""
        return self.detector(to_rgb(upright(photo)))

    def judge(
        self, photo: Image.Image, aligned: bool | str = "auto", detections: Sequence[Detection] | None = None
    ) -> tuple[bool, list[Detection], tuple[str, ...]]:
        """Return whether an upright photo is one aligned face, the faces found, and warnings.

        In "auto" a square picture is, when its largest face stands where FFHQ's faces stand; and when none is found in
        it and its side is within `UNSEEN`: strong degradations hide a face from a detector (4 of 80).
        """
        if aligned not in (True, False, "auto"):
            raise InputError(f"aligned={aligned} is not known; choose true, false or auto")
        square = abs(photo.width - photo.height) <= 1
        if aligned is True:
            require_square(photo, "the picture")
            return True, list(detections or ()), ()
        try:
            found = self.detect(photo) if detections is None else list(detections)
        except InputError as missing:
            if aligned == "auto" and square:
                return True, [], (f"taken for an aligned face without a look, as {missing}",)
            raise
        if aligned == "auto" and square:
            if not found and UNSEEN[0] <= photo.width <= UNSEEN[1]:
                return True, [], ("no face found; taken for an aligned face as it is square (else aligned=false)",)
            near = ALIGNED_SAME_SIZE if photo.width == self.resolution else ALIGNED
            if found and template_distance(max(found, key=lambda d: d.size).points, photo.size) <= near:
                return True, found, ()
        return False, found, () if found else ("no face found",)

    def restore_aligned(self, photos: Sequence[Image.Image], fidelity: float = 0.0) -> Tensor:
        """Restore aligned faces as one batch: `[B, 3, S, S]` in [-1, 1], not clamped, on the CPU."""
        return self.restore_crops(torch.stack([self.crop_of(photo) for photo in photos]), fidelity)

    def crop_of(self, photo: Image.Image) -> Tensor:
        """Return an aligned face as the model reads it: `[3, S, S]` in [-1, 1]; InputError when it isn't square."""
        require_square(photo, "the picture")
        return from_pil(resize_pil(to_rgb(photo), self.resolution))

    @torch.no_grad()
    def restore_crops(self, crops: Tensor, fidelity: float = 0.0) -> Tensor:
        """Restore crops `[N, 3, S, S]` in batches; returns the same shape, not clamped, on the CPU."""
        device = next(self.restorer.parameters()).device
        more = {"fidelity": fidelity} if fidelity else {}
        restored = []
        for batch in crops.split(self.batch_size):
            full = batch[torch.arange(self.batch_size) % len(batch)] if self.equal_batches else batch
            restored.append(self.restorer(full.to(device), **more)[: len(batch)].float().cpu())
        return torch.cat(restored) if restored else crops

    def whole(self, photo: Image.Image, found: Sequence[Detection] = ()) -> FaceReport:
        """Return the report of an aligned face: the whole picture, and its points where a detector saw them."""
        size = min(photo.size)
        one = max(found, key=lambda d: d.size, default=None)
        points, score = (one.points, one.score) if one else ((FFHQ_512 + 0.5) * size / 512 - 0.5, 0.0)
        return FaceReport((0, 0, photo.width - 1, photo.height - 1), points, score, size, "restored")

    def restore_faces(
        self,
        photo: Image.Image,
        detections: Sequence[Detection],
        fidelity: float = 0.0,
        upscale: int = 1,
        force: bool = False,
        only: Sequence[int] | None = None,
    ) -> tuple[Image.Image, list[FaceReport]]:
        """Restore these faces of an upright photo; returns the photo and what became of each face.

        Arguments as in a call. Video uses it with points that are smoothed over time.
        """
        reports = self.report(detections, photo.size, force, only)
        canvas = Canvas(photo, upscale, self.upscaler)
        chosen = [report for report in reports if report.status == "restored"]
        whole = Image.fromarray(canvas.rgb)
        befores = [crop(whole, report.points, self.resolution)[0] for report in chosen]
        if befores:
            crops = torch.stack([from_pil(before) for before in befores])
            places = {id(report): Place.of(report.points, upscale) for report in reports}
            for report, before, face in zip(chosen, befores, self.restore_crops(crops, fidelity), strict=True):
                others = [places[id(other)] for other in reports if other is not report and touches(other, report)]
                self._paste(canvas, places[id(report)], others, before, face)
        return canvas.picture(), reports

    def _paste(self, canvas: Canvas, place: Place, others: list[Place], before: Image.Image, face: Tensor) -> None:
        box = place.box(canvas.size)
        coloured = matched((face.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5, np.asarray(before))
        share = share_of(place, self.mask(face), others, box)
        canvas.blend(box, place.warp(coloured, box), share)

    def report(
        self, found: Sequence[Detection], size: tuple[int, int], force: bool = False, only: Sequence[int] | None = None
    ) -> list[FaceReport]:
        """Return what will be done with each face of an upright photo of this size, and why."""
        if only is not None and not all(0 <= index < len(found) for index in only):
            raise InputError(f"only={list(only)}: the photo has {len(found)} faces, counted from 0")
        reports = []
        for index, one in enumerate(found):
            place = Place.of(one.points)
            if only is not None and index not in only:
                reason = "not chosen"
            else:
                reason = "" if force and one.size >= 2 else self._reason_to_leave(one, place, size)
            beside = [str(i) for i, other in enumerate(found) if other is not one and shared(other.box, one.box)]
            turned, outside = yaw(one.points), place.outside(size)
            warnings = [f"overlaps face {', '.join(beside)}"] if beside else []
            warnings += [f"turned by about {turned:.0f} degrees"] if turned > PROFILE / 2 else []
            warnings += [f"{outside:.0%} of it lies outside the photo"] if outside > 0.02 else []
            status = "left" if reason else "restored"
            reports.append(FaceReport(one.box, one.points, one.score, place.side, status, reason, tuple(warnings)))
        return reports

    def _reason_to_leave(self, one: Detection, place: Place, size: tuple[int, int]) -> str:
        if one.size < SMALLEST:
            return f"too small: {one.size:.0f} px, restoring starts at {SMALLEST} px"
        if place.side > LARGEST * self.resolution:
            return (
                f"already sharp: its crop is {place.side:.0f} px wide and the model's {self.resolution} px "
                "(force=true restores it all the same)"
            )
        if (turned := yaw(one.points)) > PROFILE:
            return f"in profile: turned by about {turned:.0f} degrees"
        if (outside := place.outside(size)) > OUTSIDE:
            return f"cut by the border: {outside:.0%} of it lies outside the photo"
        return ""


def touches(a: FaceReport | Detection, b: FaceReport | Detection) -> bool:
    """Tell whether the ellipses of two faces may overlap, by their boxes' distance."""
    centres = [np.array([d.box[0] + d.box[2], d.box[1] + d.box[3]]) / 2 for d in (a, b)]
    return float(np.linalg.norm(centres[0] - centres[1])) < 0.47 * (Place.of(a.points).side + Place.of(b.points).side)
