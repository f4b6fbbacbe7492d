"""Which faces of a photo are restored and which are left, with the reason; is a photo one aligned face?"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from lafr.alignment import FFHQ_512, crop, template_distance, yaw
from lafr.errors import InputError
from lafr.images import to_rgb
from lafr.photos.detectors import Detection
from lafr.photos.guard import LARGE, Limits
from lafr.photos.pasting import Place
from lafr.photos.sharpness import LOST, lost_detail

SMALLEST = 24  # pixels of a face's box: below, there is nothing to restore from
LARGEST = 1.5  # native crop over the model's side: above, restoring would remove the detail of a sharp face
PROFILE = 65  # degrees to the side: the training faces end about there
OUTSIDE = 0.3  # share of the face that the photo's border cuts off
# Mean distance of the five points from FFHQ's, in sides of the image, up to which it is aligned. Of 80 aligned faces
# that were not used in training all lie within 0.046; degraded, 95 % within 0.073 and all within 0.16, as blur moves
# the points.
ALIGNED = 0.08
ALIGNED_SAME_SIZE = 0.2  # in a square of just the model's side
UNSEEN = (16, 512)  # sides of a square in which no face is found and which is still taken for an aligned one


@dataclass(frozen=True)
class FaceReport:
    """What became of one face.

    `box` (x0, y0, x1, y1) and `points [5, 2]` are in pixels of the upright photo, `side` is that of its aligned crop.
    `status` is "restored", or "left" with the `reason`. `likeness` is the restored face's to the input and
    `held_detail` the share of its detail that the input holds, see `lafr.photos.sharpness`.
    """

    box: tuple[float, float, float, float]
    points: np.ndarray
    score: float
    side: float
    status: str
    reason: str = ""
    warnings: tuple[str, ...] = ()
    likeness: float | None = None
    held_detail: float | None = None


def reports_of(
    found: Sequence[Detection],
    photo: Image.Image,
    resolution: int,
    force: bool = False,
    only: Collection[int] | None = None,
    limits: Sequence[Limits] | None = None,
) -> list[FaceReport]:
    """Return what will be done with each face of an upright photo, and why.

    Args:
        found: the faces.
        photo: the upright photo.
        resolution: the model's side in pixels.
        force: restore also a face that `reason_to_leave` would leave, if it is 2 px wide or more.
        only: indexes of the faces to restore; all when None.
        limits: of each face; the guard's own when None.
    """
    if limits is not None and len(limits) != len(found):
        raise InputError("limits", f"{len(limits)} limits", f"one for each of the {len(found)} faces")
    if only is not None and not all(0 <= index < len(found) for index in only):
        raise InputError("only", list(only), f"indexes of the photo's {len(found)} faces, counted from 0")
    reports, size = [], photo.size
    for index, one in enumerate(found):
        place = Place.of(one.points)
        large = place.side > LARGEST * resolution
        if only is not None and index not in only:
            reason = "not chosen"
        elif force and one.size >= 2:
            reason = ""
        else:
            reason = reason_to_leave(one, place, size)
            lost = limits[index].lost if limits else LOST
            if not reason and large and is_sharp(photo, one.points, resolution, lost):
                reason = too_large(place.side, resolution)
        status = "left" if reason else "restored"
        warnings = warnings_of(index, found, place, size)
        if large and not reason:
            warnings = (*warnings, larger(place.side, resolution))
        reports.append(FaceReport(one.box, one.points, one.score, place.side, status, reason, warnings))
    return reports


def reason_to_leave(one: Detection, place: Place, size: tuple[int, int]) -> str:
    """Return why restoring would not improve a face, or "" when it would."""
    if one.size < SMALLEST:
        return f"too small: {one.size:.0f} px, restoring starts at {SMALLEST} px"
    turned = yaw(one.points)
    if turned > PROFILE:
        return f"in profile: turned by about {turned:.0f} degrees"
    outside = place.outside(size)
    if outside > OUTSIDE:
        return f"cut by the border: {outside:.0%} of it lies outside the photo"
    return ""


def is_sharp(photo: Image.Image, points: np.ndarray, resolution: int, lost: float = LOST) -> bool:
    """Return whether more detail than `lost` is gone in a crop of `resolution` px: whether restoring would blur it."""
    whole = photo if photo.mode == "RGB" else to_rgb(photo)
    side = min(round(Place.of(points).side), 4 * resolution)
    return lost_detail(crop(whole, points, side)[0], resolution) > lost


def too_large(side: float, resolution: int) -> str:
    """Return the reason to leave a sharp face that is larger than the model."""
    return f"{LARGE}: its crop is {side:.0f} px wide and the model's {resolution} px"


def larger(side: float, resolution: int) -> str:
    """Return the warning of a face that comes out with fewer pixels of detail than it has."""
    return f"its crop is {side:.0f} px wide and is restored at the model's {resolution} px"


def warnings_of(index: int, found: Sequence[Detection], place: Place, size: tuple[int, int]) -> tuple[str, ...]:
    """Return what makes the restoration of face number `index` doubtful."""
    boxes = torch.tensor([one.box for one in found], dtype=torch.float64)
    overlaps = box_iou(boxes[index : index + 1], boxes)[0] > 0
    others = [str(other) for other in overlaps.nonzero().flatten().tolist() if other != index]
    turned, outside = yaw(found[index].points), place.outside(size)
    warnings = [f"overlaps face {', '.join(others)}"] if others else []
    if turned > PROFILE / 2:
        warnings.append(f"turned by about {turned:.0f} degrees")
    if outside > 0.02:
        warnings.append(f"{outside:.0%} of it lies outside the photo")
    return tuple(warnings)


def report_of_aligned(
    photo: Image.Image, found: Sequence[Detection] = (), resolution: int | None = None, force: bool = False
) -> FaceReport:
    """Return the report of an aligned face: the whole photo, with its points where a detector saw them.

    With the model's `resolution` a sharp face that is larger is left, unless `force`.
    """
    size = min(photo.size)
    one = largest(found)
    points, score = (one.points, one.score) if one else ((FFHQ_512 + 0.5) * size / 512 - 0.5, 0.0)
    box = (0, 0, photo.width - 1, photo.height - 1)
    if resolution is None or size <= LARGEST * resolution:
        return FaceReport(box, points, score, size, "restored")
    if not force and aligned_is_sharp(photo, resolution):
        return FaceReport(box, points, score, size, "left", too_large(size, resolution))
    return FaceReport(box, points, score, size, "restored", warnings=(larger(size, resolution),))


def aligned_is_sharp(photo: Image.Image, resolution: int) -> bool:
    """Return whether an aligned face shows detail that is lost at `resolution` px."""
    side = min(4 * resolution, *photo.size)
    return lost_detail(to_rgb(photo).resize((side, side), Image.Resampling.LANCZOS), resolution) > LOST


def looks_aligned(found: Sequence[Detection], size: tuple[int, int], resolution: int) -> bool:
    """Return whether the largest face of a square photo lies where FFHQ's alignment puts it."""
    one = largest(found)
    near = ALIGNED_SAME_SIZE if size[0] == resolution else ALIGNED
    return one is not None and template_distance(one.points, size) <= near


def largest(found: Sequence[Detection]) -> Detection | None:
    """Return the face with the largest box; None without faces."""
    return max(found, key=lambda one: one.size, default=None)


def centre_face(found: Sequence[Detection], size: tuple[int, int]) -> list[int]:
    """Return the index of the face whose box is nearest to the middle of a photo of this size; [] without faces."""
    middle = (np.array(size) - 1) / 2
    distances = [float(np.linalg.norm(one.centre - middle)) for one in found]
    return [int(np.argmin(distances))] if distances else []


def may_overlap(a: FaceReport, b: FaceReport) -> bool:
    """Return whether the ellipses of two faces may overlap, by the distance of their boxes."""
    centres = [np.array([one.box[0] + one.box[2], one.box[1] + one.box[3]]) / 2 for one in (a, b)]
    reach = 0.47 * (Place.of(a.points).side + Place.of(b.points).side)  # 0.47 sides: the ellipse's longer radius
    return float(np.linalg.norm(centres[0] - centres[1])) < reach
