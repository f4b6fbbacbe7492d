"""The templates of face alignment (FFHQ, ArcFace), similarity transforms between them, and aligned crops."""

import cv2
import numpy as np
from PIL import Image

# Five points: eyes, nose tip, mouth corners; left and right as seen in the image.
FFHQ_512 = np.array([(192.98, 239.95), (318.90, 240.19), (256.63, 314.02), (201.26, 371.41), (313.09, 371.15)])
ARCFACE_112 = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
# Of the 68 iBUG points: those of the eyes as seen on the left and right, the nose tip, the mouth corners.
FIVE_OF_68 = (slice(36, 42), slice(42, 48), slice(30, 31), slice(48, 49), slice(54, 55))


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the 2 x 3 matrix of the least-squares similarity from `source` to `target`, each `[N, 2]`."""
    x, y = source.T
    one, zero = np.ones_like(x), np.zeros_like(x)
    # [u, v] = [[a, -b], [b, a]] [x, y] + [c, d]
    rows = np.concatenate([np.stack([x, -y, one, zero], 1), np.stack([y, x, zero, one], 1)])
    a, b, c, d = np.linalg.lstsq(rows, np.concatenate([target[:, 0], target[:, 1]]), rcond=None)[0]
    return np.array([[a, -b, c], [b, a, d]])


def template_distance(points: np.ndarray, size: tuple[int, int]) -> float:
    """Return how far five points lie from FFHQ's in an image of this size: their mean distance over its side."""
    side = min(size)
    template = (FFHQ_512 + 0.5) * side / 512 - 0.5
    return float(np.linalg.norm(points - template, axis=1).mean()) / side


def yaw(points: np.ndarray) -> float:
    """Return about how many degrees a face is turned to the side, from the position of the nose tip between the eyes.

    In a frontal face it lies halfway. It is about 0.9 of half the eyes' distance in front of their plane, so a turn by
    the angle a moves it by 0.9 tan(a) of half the projected distance. Accurate to about 10 degrees.
    """
    left, right, nose = points[:3]
    eyes = right - left
    along = float((nose - left) @ eyes / max(eyes @ eyes, 1e-9))
    return float(np.degrees(np.arctan(abs(2 * along - 1) / 0.9)))


def crop(
    image: Image.Image, points: np.ndarray, resolution: int, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> tuple[Image.Image, float]:
    """Return the FFHQ crop of the face with these five points `[5, 2]`, and its side in the photograph's own pixels.

    The photograph's pixels are warped once, bicubic, the border mirrored. Where that would shrink them, they are warped
    to a canvas k times larger (k the least whole number that does not shrink), and `resample`, which is antialiased,
    reduces it to `resolution`: nothing aliases.
    """
    matrix = similarity(points, FFHQ_512)
    native_size = 512 / float(np.hypot(*matrix[:, 0]))
    k = max(1, int(np.ceil(native_size / resolution - 1e-6)))
    side, zoom = k * resolution, k * resolution / 512
    matrix = matrix * zoom
    matrix[:, 2] += (zoom - 1) / 2  # whole numbers are pixel centres: scaled around -0.5
    border, cubic = cv2.BORDER_REFLECT, cv2.INTER_CUBIC
    face = Image.fromarray(cv2.warpAffine(np.asarray(image), matrix, (side, side), flags=cubic, borderMode=border))
    return face if k == 1 else face.resize((resolution, resolution), resample), native_size
