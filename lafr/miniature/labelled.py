"""Faces with landmarks, warped and degraded: training data of the miniature's recogniser, landmarker and parser."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any
from zipfile import BadZipFile

import cv2
import numpy as np
import torch
from torch import Tensor

from lafr.data.degradation.operators import Degrade
from lafr.data.faces import Faces
from lafr.data.stream import MIRRORED, PairStream
from lafr.errors import InputError, reason_of, setting
from lafr.miniature.regions import draw_regions

# Mirroring swaps left and right: point i of the mirrored face is point MIRROR[i] of the original (iBUG's 68).
MIRROR = np.array([
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1), 45, 44, 43, 42, 47, 46, 39, 38, 37, 36,
    41, 40, *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), 67, 66, 65,
])  # fmt: skip


def read_landmarks(root: str | Path | None, folders: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Return "folder/name" -> points `[68, 2]` in pixels of the 512 crop, from `FOLDER_landmarks68.npz` in `root`.

    Faces in which none were detected are left out. Raises InputError when a file is missing or damaged.
    """
    if root is None or not folders:
        example = setting("data", "congress_omi")
        raise InputError("folders", folders, "given: landmarks are stored by folder", f"choose data such as {example}")
    found: dict[str, np.ndarray] = {}
    for folder in folders:
        path = Path(root) / f"{folder}_landmarks68.npz"
        if not path.is_file():
            raise InputError(f"landmarks {str(path)!r} are missing; they must lie in the faces' folder")
        try:
            with np.load(path) as stored:
                names, points, detected = (stored[key] for key in ("names", "landmarks", "detected"))
            found |= {f"{folder}/{name}": p for name, p, there in zip(names, points, detected, strict=True) if there}
        except (OSError, EOFError, ValueError, KeyError, TypeError, BadZipFile, zlib.error) as error:
            raise InputError(f"landmarks {str(path)!r} are damaged ({reason_of(error)}); get a whole copy") from None
    return found


def points_of(landmarks: Mapping[str, np.ndarray], paths: Sequence[PurePath]) -> list[np.ndarray]:
    """Return the points of faces by their paths, `[68, 2]` each; raises InputError where a face has none."""
    keys = [key_of(path) for path in paths]
    if missing := [key for key in keys if key not in landmarks]:
        raise InputError(f"{len(missing)} faces have no landmarks, first {missing[0]!r}; remove them")
    return [landmarks[key] for key in keys]


def key_of(path: PurePath) -> str:
    """Return the "folder/name" by which landmarks are stored."""
    return "/".join(path.parts[-2:])


class LabelledStream(PairStream):
    """An endless sequence: item n is {"hq", "lq", "points", "regions", "n"}, a function of (seed, n).

    `hq [3, R, R]` is a face mirrored, warped and recoloured at random, and with probability `mix` blended with a
    second one (for distillation only: the blend has the points of the first face). `lq` is the student's input: `hq`
    itself or, with probability `degraded`, a degraded copy. `points [68, 2]` are in pixels of the 512 crop, `regions
    [R, R]` are class labels.
    """

    def __init__(
        self,
        faces: Faces,
        degradation: Degrade,
        seed: int,
        landmarks: Mapping[str, np.ndarray],
        mix: float = 0.0,
        degraded: float = 0.5,
        warp: float = 1.0,
    ):
        super().__init__(faces, degradation, seed)
        self.landmarks = landmarks
        self.mix, self.degraded, self.warp = mix, degraded, warp
        self.points = points_of(landmarks, faces.paths)

    def held_out(self, faces: Any) -> "HeldOutFaces":  # Faces: landmarks are found by path
        """Return validation items: one warp and degradation for each face, no blends."""
        return HeldOutFaces(
            faces, self.degradation, self.seed + 1, self.landmarks, degraded=self.degraded, warp=self.warp
        )

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, 3, n])  # 0 to 2 are PairStream's
        index = self.face_index(n)
        face, points = self.faces[index], self.points[index].astype(np.float64)
        if rng.random() < self.mix:
            share = rng.uniform(0.3, 0.7)
            face = share * face + (1 - share) * self.faces[int(rng.integers(len(self.faces)))]
        if rng.random() < MIRRORED:
            face, points = face.flip(-1), mirrored(points)
        matrix = random_affine(rng, self.warp)
        hq = recoloured(warped(face, matrix), rng)
        points = points @ matrix[:, :2].T + matrix[:, 2]  # [68, 2], by the matrix that moved the pixels
        lq = self.degradation(hq, rng) if rng.random() < self.degraded else hq
        regions = torch.from_numpy(draw_regions(points, hq.shape[-1])).long()
        points = torch.from_numpy(points).float()
        return {"hq": hq, "lq": lq, "points": points, "regions": regions, "n": torch.tensor(n)}


class HeldOutFaces(LabelledStream):
    """Validation items: as many as faces."""

    def __len__(self) -> int:
        return len(self.faces)


def mirrored(points: np.ndarray) -> np.ndarray:
    """Return the points of the mirrored face, in pixels of the 512 crop."""
    return (points * [-1, 1] + [511, 0])[MIRROR]


def random_affine(rng: np.random.Generator, strength: float) -> np.ndarray:
    """Draw a 2 x 3 matrix on the 512 crop: a few degrees of rotation, a few per cent of shift and scale."""
    angle = np.deg2rad(rng.normal(0, 3)) * strength
    scale = np.exp(rng.normal(0, 0.04, 2) * strength)
    # x -> turn (x - centre) + centre + shift
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * scale
    shift = rng.normal(0, 8, 2) * strength
    centre = np.array([256.0, 290.0])  # between eyes and mouth
    return np.column_stack([turn, centre + shift - turn @ centre])


def warped(face: Tensor, matrix: np.ndarray) -> Tensor:
    """Return `face [3, R, R]` warped by `matrix`, given for the 512 crop; the border is mirrored."""
    side = face.shape[-1]
    scale = side / 512
    # pixel centres lie at halves: p512 = (p + 0.5) / scale - 0.5, and the matrix is conjugated by this map
    half = 0.5 / scale - 0.5
    moved = np.column_stack([matrix[:, :2], (matrix[:, :2] @ [half, half] + matrix[:, 2] - half) * scale])
    image = face.permute(1, 2, 0).contiguous().numpy()
    image = cv2.warpAffine(image, moved, (side, side), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def recoloured(face: Tensor, rng: np.random.Generator) -> Tensor:
    """Return `face` with its gamma and colour balance changed; one in ten is gray."""
    gamma = float(np.exp(rng.normal(0, 0.2)))
    x = ((face + 1) / 2).clamp(0, 1) ** gamma
    gain = np.exp(rng.normal(0, 0.06, 3)).astype(np.float32)
    x = (x * torch.from_numpy(gain)[:, None, None]).clamp(0, 1)
    if rng.random() < 0.1:
        x = x.mean(0, keepdim=True).expand_as(x)
    return (x * 2 - 1).contiguous()
