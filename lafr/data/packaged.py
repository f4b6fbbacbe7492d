"""Seven photographed faces that installed packages contain, aligned by stored landmarks: nothing to download.

scikit-image's astronaut (public domain) and the six faces of insightface's `t1.jpg` (copyrighted: used in place). An
eighth, matplotlib's Grace Hopper (public domain), trains where insightface is not installed.
"""

import sys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image
from torch import Tensor

from lafr.alignment import FFHQ_512, similarity
from lafr.data.benchmarks import SyntheticBenchmark
from lafr.data.degradation.operators import Degrade
from lafr.images import from_pil, read_pil, resize_pil
from lafr.weights import MissingFileError, locate

# Five points in the source images: eyes, nose tip, mouth corners, in pixels, detected by dlib's 68-point predictor. Two
# points of t1_4, the far eye and mouth corner of a face near profile, were set by hand.
LANDMARKS = {
    "astronaut": [(203.2, 101.5), (246.8, 104.0), (225.0, 127.0), (201.0, 140.0), (245.0, 141.0)],
    "t1_0": [(88.0, 330.2), (128.5, 310.3), (118.0, 337.0), (114.0, 372.0), (148.0, 352.0)],
    "t1_1": [(291.7, 213.0), (321.3, 194.8), (302.0, 229.0), (312.0, 248.0), (338.0, 234.0)],
    "t1_2": [(491.3, 320.7), (539.7, 333.7), (509.0, 365.0), (481.0, 368.0), (531.0, 380.0)],
    "t1_3": [(761.3, 398.7), (800.8, 403.8), (771.0, 431.0), (763.0, 436.0), (808.0, 441.0)],
    "t1_4": [(917.0, 120.0), (944.0, 116.0), (923.0, 148.0), (933.0, 167.0), (958.0, 170.0)],
    "t1_5": [(1149.0, 327.8), (1192.2, 325.0), (1164.0, 348.0), (1153.0, 367.0), (1197.0, 364.0)],
}
ASTRONAUT = ("astronaut",)
GRACE_HOPPER = [(222.2, 197.2), (310.8, 191.5), (266.0, 238.0), (233.0, 278.0), (309.0, 272.0)]  # as above


class PackagedFaces:
    """The packaged faces named in `names`, aligned: `faces[i]` is `[3, resolution, resolution]` in [-1, 1].

    Raises InputError naming the package to install when one is missing.
    """

    def __init__(self, resolution: int, names: Sequence[str] = tuple(LANDMARKS)):
        self.names = list(names)
        self._faces = [from_pil(resize_pil(aligned(name), resolution)) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        return self._faces[index]

    def name(self, index: int) -> str:
        """Return the name of face `index`."""
        return self.names[index]


def aligned(name: str) -> Image.Image:
    """Return one packaged face as a 512 px crop in FFHQ's alignment, enlarged from 163 to 208 px."""
    source = read_pil(locate(file_of(name)))
    # rotation, uniform scale and shift by least squares: a face's shape is not distorted
    matrix = similarity(np.array(LANDMARKS.get(name, GRACE_HOPPER)), FFHQ_512)
    # the crops are enlarged, so that cubic interpolation needs no antialiasing; FFHQ mirrors at the border too
    crop = cv2.warpAffine(np.asarray(source), matrix, (512, 512), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    return Image.fromarray(crop)


def file_of(name: str) -> str:
    """Return the entry of `lafr.weights.EXTERNAL` that shows a packaged face."""
    return "insightface_t1" if name.startswith("t1_") else name


def on_this_machine(names: Sequence[str]) -> list[str]:
    """Return the faces whose package is installed; a line says which are not."""
    absent: dict[str, str] = {}
    for file in dict.fromkeys(map(file_of, names)):
        try:
            locate(file)
        except MissingFileError as error:
            absent[file] = str(error)
    there = [name for name in names if file_of(name) not in absent]
    for reason in absent.values():
        print(f"warning: {len(there)} of {len(names)} packaged faces: {reason}", file=sys.stderr, flush=True)
    return there


def packaged_benchmark(
    name: str,
    resolution: int,
    degradation: Degrade,
    draws: int,
    seed: int = 0,
    names: Sequence[str] = tuple(LANDMARKS),
) -> SyntheticBenchmark:
    """Return the packaged faces as a test set, each degraded `draws` times.

    Where a package is missing its name says of how many: "mini (1 of 7 faces)".
    """
    there = on_this_machine(names)
    if len(there) < len(names):
        name = f"{name} ({len(there)} of {len(names)} faces)"
    return SyntheticBenchmark(name, PackagedFaces(resolution, there or names), degradation, draws, seed)


def train_and_validation(resolution: int) -> tuple[PackagedFaces, PackagedFaces]:
    """Return six faces to train on and the astronaut to validate on: enough to run every stage, not to learn from.

    Without insightface, which carries the six, Grace Hopper alone is trained on.
    """
    names = on_this_machine([name for name in LANDMARKS if name not in ASTRONAUT]) or ["grace_hopper"]
    return PackagedFaces(resolution, names), PackagedFaces(resolution, ASTRONAUT)
