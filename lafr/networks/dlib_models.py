"""dlib's models behind one interface: a detector, two point predictors and a face descriptor; none has a gradient."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lafr.alignment import FIVE_OF_68
from lafr.errors import need
from lafr.images import to_uint8
from lafr.networks.landmarkers import Landmarks, to_512
from lafr.networks.recognisers import Recogniser
from lafr.weights import locate

PACKAGE = ("dlib", "dlib-bin")  # module, what pip installs
# Left, top, right, bottom of the face in a 512 px FFHQ crop: the face of an aligned crop needs no detector.
RECTANGLE = (120, 150, 390, 420)


class FrontalFaces:
    """dlib's HOG detector of frontal faces and 68-point predictor, for whole photographs.

    Raises InputError without dlib or its file. The 68 points' licence excludes commercial use.
    """

    def __init__(self) -> None:
        dlib = need(*PACKAGE)
        self.version: str = dlib.__version__
        self._detector = dlib.get_frontal_face_detector()
        self._predictor = dlib.shape_predictor(str(locate("dlib_68_points")))

    def detect(self, pixels: np.ndarray, doublings: int) -> list[tuple]:
        """Return (dlib rectangle, score) of each face in RGB `[H, W, 3]`.

        The detector knows faces of 80 px and more; the image is doubled in size `doublings` times first.
        """
        boxes, scores, _ = self._detector.run(pixels, doublings, 0.0)
        return list(zip(boxes, scores, strict=True))

    def five_points(self, pixels: np.ndarray, box: Any) -> np.ndarray:
        """Return eyes, nose tip and mouth corners `[5, 2]` (x, y) in pixels of the face in `box`."""
        points = points_of(self._predictor, pixels, box)
        return np.stack([points[of].mean(0) for of in FIVE_OF_68])


class DlibResNet(Recogniser):
    """dlib's ResNet (King, 2017): `[B, 128]`, not of unit length; its measure is the Euclidean distance.

    Two photographs of a person are less than 0.6 apart.
    """

    name = "dlib"
    origins = frozenset({"dlib"})

    def __init__(self, network: str, points: str):
        super().__init__()
        dlib = need(*PACKAGE)
        self.network = dlib.face_recognition_model_v1(network)
        self.predictor = dlib.shape_predictor(points)

    @classmethod
    def from_pretrained(cls) -> "DlibResNet":
        """Return it; raises InputError when dlib or its files are missing."""
        return cls(str(locate("dlib_resnet")), str(locate("dlib_5_points")))

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Return `[B, 128]` of `[B, 3, H, W]` in [-1, 1], rounded to 8 bits."""
        descriptors = []
        for pixels in as_arrays(image):
            shape = self.predictor(pixels, aligned_box(len(pixels)))
            descriptors.append(torch.tensor(list(self.network.compute_face_descriptor(pixels, shape))))
        return torch.stack(descriptors).to(image.device)


class Dlib68(nn.Module):
    """The 68 points of iBUG by dlib's regression trees (Kazemi & Sullivan, CVPR 2014): for scores.

    Maps `[B, 3, H, H]` in [-1, 1], rounded to 8 bits, to `Landmarks` without heatmaps. Raises InputError without dlib.
    """

    name = "dlib_68"
    origins = frozenset({"dlib_68"})

    def __init__(self, points: str):
        super().__init__()
        self.predictor = need(*PACKAGE).shape_predictor(points)

    @classmethod
    def from_pretrained(cls) -> "Dlib68":
        """Return it; raises InputError when dlib or its file is missing."""
        return cls(str(locate("dlib_68_points")))

    @torch.no_grad()
    def forward(self, image: Tensor) -> Landmarks:
        """Return the points `[B, 68, 2]`."""
        found = [points_of(self.predictor, pixels, aligned_box(len(pixels))) for pixels in as_arrays(image)]
        points = torch.from_numpy(np.stack(found)).float()
        return Landmarks(None, to_512(points, image.shape[-1]).to(image.device))


def points_of(predictor: Any, pixels: np.ndarray, box: Any) -> np.ndarray:
    """Return a predictor's points `[K, 2]` (x, y) in pixels, of the face in `box`."""
    return np.array([(point.x, point.y) for point in predictor(pixels, box).parts()], np.float64)


def as_arrays(image: Tensor) -> list[np.ndarray]:
    """Return what dlib reads, RGB `[H, W, 3]` in 8 bits, of each of `[B, 3, H, W]` in [-1, 1]."""
    return [np.ascontiguousarray(pixels) for pixels in to_uint8(image).permute(0, 2, 3, 1).cpu().numpy()]


def aligned_box(side: int) -> Any:
    """Return the dlib rectangle of the face in an aligned crop of `side` pixels."""
    return need(*PACKAGE).rectangle(*(round(edge * side / 512) for edge in RECTANGLE))
