"""Paste a restored crop back into the photo: inverse warp, mask, colours, and the shares of overlapping faces."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lafr.alignment import FFHQ_512, similarity
from lafr.errors import InputError
from lafr.networks import device_of, load

CENTRE, RADII = (0.5, 0.5), (0.43, 0.47)  # of the ellipse, in sides of the crop
FEATHER = 0.25  # share of the radius over which the mask falls to zero
COLOUR_SIGMA = 1 / 16  # of the Gaussian that separates colour from detail, in sides of the crop


@dataclass(frozen=True)
class Place:
    """The position of a face's crop in a photo that is rendered `scale` times as large.

    `matrix [2, 3]` maps the photo's own pixels to those of the 512 px crop; whole numbers are pixel centres.
    """

    matrix: np.ndarray
    scale: int = 1

    @classmethod
    def of(cls, points: np.ndarray, scale: int = 1) -> "Place":
        """Return the place of the face with these five points `[5, 2]` in FFHQ's alignment."""
        return cls(similarity(points, FFHQ_512), scale)

    @property
    def side(self) -> float:
        """The crop's side in the photo's own pixels."""
        return 512 / float(np.hypot(*self.matrix[:, 0]))

    def to_crop(self, side: int, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Return `[2, 3]` from pixels of the rendered photo, counted from `origin`, to those of a crop of `side` px."""
        drawn = np.array([[1, 0, origin[0] + 0.5], [0, 1, origin[1] + 0.5], [0, 0, self.scale]]) / self.scale
        drawn[:2, 2] -= 0.5
        crop = np.vstack([self.matrix, [0, 0, 1]]) * (side / 512)
        crop[:2, 2] += (side / 512 - 1) / 2
        return crop[:2] @ drawn

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return the least box (x0, y0, x1, y1; ends excluded) around the crop in a rendered photo of this size."""
        linear, shift = self.matrix[:, :2], self.matrix[:, 2]
        corners = np.array([(-0.5, -0.5), (511.5, -0.5), (511.5, 511.5), (-0.5, 511.5)])
        drawn = ((corners - shift) @ np.linalg.inv(linear).T + 0.5) * self.scale - 0.5
        low = np.clip(np.floor(drawn.min(0)), 0, size).astype(int)
        high = np.clip(np.ceil(drawn.max(0)) + 1, 0, size).astype(int)
        return (*low.tolist(), *high.tolist())

    def warp(self, crop: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        """Return `crop [S, S, ...]` in float32 warped to `box` of the rendered photo: antialiased, edge repeated."""
        shrink = crop.shape[0] / (self.side * self.scale)
        fine = int(np.ceil(shrink)) if shrink > 1.25 else 1  # rendered that much larger first, against aliasing
        place, size = Place(self.matrix, self.scale * fine), (box[2] - box[0], box[3] - box[1])
        matrix = place.to_crop(crop.shape[0], (box[0] * fine, box[1] * fine))
        flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
        large = (size[0] * fine, size[1] * fine)
        drawn = cv2.warpAffine(
            np.asarray(crop, np.float32), matrix, large, flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return drawn if fine == 1 else smaller(drawn, size)

    def radius(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """Return the relative radius of each pixel of `box` in the face's ellipse: 0 in the middle, 1 on its border."""
        to_crop = self.to_crop(512, box[:2])
        x, y = np.meshgrid(np.arange(box[2] - box[0]), np.arange(box[3] - box[1]))
        u, v = (row[0] * x + row[1] * y + row[2] for row in to_crop)
        return _radius((u + 0.5) / 512, (v + 0.5) / 512)

    def outside(self, size: tuple[int, int]) -> float:
        """Return the share of the face's ellipse that lies outside a photo of this size."""
        axis = (np.arange(64) + 0.5) / 64
        u, v = np.meshgrid(axis, axis)
        inside_ellipse = _radius(u, v) < 1 - FEATHER
        crop = np.stack([u[inside_ellipse], v[inside_ellipse]], 1) * 512 - 0.5
        x, y = ((crop - self.matrix[:, 2]) @ np.linalg.inv(self.matrix[:, :2]).T).T
        return float(np.mean((x < -0.5) | (y < -0.5) | (x > size[0] - 0.5) | (y > size[1] - 0.5)))


def _radius(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot((u - CENTRE[0]) / RADII[0], (v - CENTRE[1]) / RADII[1])


def smaller(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return `[H, W, ...]` in float32 at `size` (width, height), bicubic and antialiased."""
    planes = torch.from_numpy(image).reshape(*image.shape[:2], -1).permute(2, 0, 1)[None]
    planes = F.interpolate(planes, size[::-1], mode="bicubic", antialias=True, align_corners=False)
    return planes[0].permute(1, 2, 0).reshape(*size[::-1], *image.shape[2:]).numpy()


def ellipse(face: Tensor) -> np.ndarray:
    """Return the mask `[S, S]` of a crop `[3, S, S]`: an ellipse, feathered to zero at its border."""
    axis = (np.arange(face.shape[-1]) + 0.5) / face.shape[-1]
    return feathered(_radius(*np.meshgrid(axis, axis)))


def feathered(radius: np.ndarray) -> np.ndarray:
    """Map a radius to 1 inside and 0 outside by a smooth step, whose slope is zero at both ends."""
    t = np.clip((1 - radius) / FEATHER, 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


class ParsedMask:
    """A mask of the head as a face parser segments it, within the ellipse.

    Args:
        network: a parser's name in `lafr.networks.NETWORKS`; class 0 is the background.
        margin: how far the mask reaches beyond them, in sides of the crop; it fades over as much.
    """

    def __init__(self, network: str = "mini_parser", margin: float = 0.05):
        self.network, self.margin = load(network), margin

    @torch.no_grad()
    def __call__(self, face: Tensor) -> np.ndarray:
        """Return the mask `[S, S]` of a crop `[3, S, S]`."""
        side = face.shape[-1]
        head = 1 - self.network(face[None].float().to(device_of(self.network))).softmax(1)[:, :1]
        head = F.interpolate(head, (side, side), mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
        reach = 2 * round(self.margin * side) + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach))
        soft = cv2.GaussianBlur(cv2.dilate(head, kernel), (0, 0), max(0.5, self.margin * side / 2))
        return np.minimum(soft, ellipse(face))


def match_colours(face: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Give a restored crop `[S, S, 3]` the local colours of the crop that it was restored from; both 0..255.

    Everything coarser than `COLOUR_SIGMA` comes from `before`, so that brightness and hue do not step at the mask.
    """
    sigma = COLOUR_SIGMA * face.shape[0]
    low = [
        cv2.GaussianBlur(np.asarray(i, np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT)
        for i in (face, before)
    ]
    return np.asarray(face, np.float32) + low[1] - low[0]


def rivalry(own: Place, others: list[Place], box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the share `[h, w]` of each pixel that this face gets where faces overlap: more near its own middle."""
    depth, *rivals = (np.clip(1 - place.radius(box), 0, 1) ** 2 for place in [own, *others])
    if not rivals:
        return np.ones_like(depth, np.float32)
    return (depth / np.maximum(depth + sum(rivals), 1e-12)).astype(np.float32)


def share_of(place: Place, mask: np.ndarray, others: list[Place], box: tuple[int, int, int, int]) -> np.ndarray:
    """Return the weight `[h, w]` of the restored face in `box`: mask times `rivalry`, 0 outside its ellipse."""
    share = np.clip(place.warp(mask, box), 0, 1) * rivalry(place, others, box)
    share[place.radius(box) >= 1] = 0
    return share


def mask_named(name: str) -> Callable[[Tensor], np.ndarray]:
    """Return the mask called "ellipse" or "parsing"."""
    if name not in ("ellipse", "parsing"):
        raise InputError("mask", name, "ellipse or parsing")
    return ellipse if name == "ellipse" else ParsedMask()
