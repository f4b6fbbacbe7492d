"""Facial regions drawn from the 68 points of iBUG: the labels of the miniature's parser."""

import cv2
import numpy as np

# (class, points) in drawing order, later ones cover earlier ones; None is the convex hull of all 68 points. Classes are
# indices of `lafr.networks.mini.REGIONS`.
POLYGONS = (
    (1, None),
    (4, (27, 31, 32, 33, 34, 35)),
    (3, tuple(range(36, 42))), (3, tuple(range(42, 48))),
    (5, tuple(range(48, 60))), (6, tuple(range(60, 68))),
)  # fmt: skip
BROWS = (tuple(range(17, 22)), tuple(range(22, 27)))
BROW_WIDTH = 0.09  # of the distance between the outer corners of the eyes
SUBPIXEL = 4  # fractional bits of OpenCV's drawing


def draw_regions(points: np.ndarray, size: int) -> np.ndarray:
    """Return class labels `[size, size]`, uint8, from `points [68, 2]` in pixels of the 512 crop.

    Drawn at 512 px and sampled at each pixel's centre: OpenCV also fills a polygon's border pixels, which at 128 px
    would make an eye a quarter larger.
    """
    labels = np.zeros((512, 512), np.uint8)
    fixed = np.round(np.asarray(points, np.float64) * (1 << SUBPIXEL)).astype(np.int32)
    for label, chosen in POLYGONS:
        polygon = cv2.convexHull(fixed) if chosen is None else fixed[list(chosen)]
        cv2.fillPoly(labels, [polygon], label, shift=SUBPIXEL)
        if label == 1:  # brows lie on the skin, under everything else
            width = max(1, round(BROW_WIDTH * float(np.hypot(*(points[45] - points[36])))))
            for brow in BROWS:
                cv2.polylines(labels, [fixed[list(brow)]], False, 2, width, shift=SUBPIXEL)
    return cv2.resize(labels, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
