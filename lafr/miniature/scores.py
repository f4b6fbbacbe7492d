"""How good the miniature's recogniser, landmarker and parser are on faces that they were not trained on."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.utils import draw_keypoints, draw_segmentation_masks

from lafr import networks
from lafr.data.benchmarks import own_generator
from lafr.data.degradation.first_order import Degradation
from lafr.data.faces import Faces, read_list
from lafr.errors import InputError
from lafr.images import from_uint8, list_images, to_uint8
from lafr.metrics import recognition
from lafr.miniature.labelled import key_of, points_of, random_affine, read_landmarks, recoloured, warped
from lafr.miniature.regions import draw_regions
from lafr.networks.crops import SimilarityCrop, resize
from lafr.networks.mini import REGIONS

SIDE = 128  # pixels
SETS = ("val", "london")  # val for every choice, london to report
X16 = Degradation(blur_sigma=(8, 8), down=(16, 16), noise_sigma=(10, 10), jpeg_quality=(60, 61), isotropic=1.0)
COLOURS = ["black", "peachpuff", "saddlebrown", "deepskyblue", "orange", "crimson", "white"]


def score_networks(root: str | Path, chosen: str, seed: int = 0) -> tuple[dict, Tensor]:
    """Return the scores on a set of faces, and an image of points and regions `[3, 256, 128 N]`.

    Args:
        root: folder of the miniature's faces: congress, omi and london, their landmarks, and val.txt.
        chosen: one of `SETS`.
        seed: of the degraded copies.
    """
    if chosen not in SETS:
        raise InputError("scores", chosen, f"one of {', '.join(SETS)}")
    root = Path(root)
    training = read_landmarks(root, ["congress", "omi"])
    held_out = read_list(root / "val.txt", root)
    paths = held_out if chosen == "val" else list_images(root / "london")
    landmarks = training | read_landmarks(root, ["london"])
    faces = Faces(paths, SIDE)
    images = torch.stack([faces[i] for i in range(len(faces))])
    truth = torch.stack([torch.from_numpy(points) for points in points_of(landmarks, paths)])  # [N, 68, 2]
    hidden = {key_of(path) for path in held_out}
    others = Faces([root / name for name in training if name not in hidden], SIDE)

    with torch.no_grad():
        recognised = recogniser_scores(images, degraded_copies(faces, seed), others)
        points = networks.load("mini_landmarker")(images).points
        labels = networks.load("mini_parser")(images).argmax(1)
    drawn = torch.stack([torch.from_numpy(draw_regions(p.numpy(), SIDE)) for p in truth]).long()
    iou = recognition.region_iou(labels, drawn, len(REGIONS))
    scores = {
        "faces": chosen,
        "images": len(faces),
        **recognised,
        "landmark_nme_percent": 100 * float(recognition.normalised_mean_error(points, truth).mean()),
        "region_iou": dict(zip(REGIONS[1:], iou[1:].tolist(), strict=True)),
        "region_iou_mean": float(iou[1:].mean()),
        "parameters": {name: _size(f"mini_{name}") for name in ("recogniser", "landmarker", "parser")},
    }
    return scores, overlay(images[:12], points[:12], labels[:12])


def degraded_copies(faces: Faces, seed: int) -> dict[str, Tensor]:
    """Return the copies `[N, 3, S, S]` that must find their own face: degraded, or also mirrored, moved, recoloured."""
    plain, moved = [], []
    for i in range(len(faces)):
        rng = own_generator(seed, faces.name(i))
        plain.append(X16(faces[i], rng))
        other = recoloured(warped(faces[i].flip(-1), random_affine(rng, 1.0)), rng)
        moved.append(X16(other, rng))
    return {"x16": torch.stack(plain), "x16, mirrored, moved, recoloured": torch.stack(moved)}


def recogniser_scores(images: Tensor, copies: Mapping[str, Tensor], others: Faces) -> dict:
    """Return how recognisers agree (Spearman), and how often a copy finds its own face, pixels as the controls.

    `others` are the faces whose pixels are whitened by PCA: none of `images` among them.
    """
    crop = SimilarityCrop()

    def pixels(batch: Tensor) -> Tensor:
        return resize(crop(batch), 56)

    mean, basis = recognition.whitening(torch.stack([pixels(others[i][None])[0] for i in range(len(others))]), 128)
    embed: dict[str, Callable[[Tensor], Tensor]] = {
        "raw pixels": lambda x: recognition.as_directions(pixels(x)),
        "PCA-whitened pixels": lambda x: recognition.as_directions(pixels(x), mean, basis),
        "mini_recogniser": networks.load("mini_recogniser"),
        "sface": networks.load("sface"),
    }
    seen = {name: network(images) for name, network in embed.items()}
    found = {}
    for name, network in embed.items():
        own = normalize(seen[name], dim=1)
        found[name] = {
            probe: recognition.finds_itself(normalize(network(x), dim=1), own) for probe, x in copies.items()
        }
    similarity = {name: seen[name] @ seen[name].T for name in ("mini_recogniser", "sface")}
    dlib = networks.load("dlib")(images).double()
    similarity["dlib"] = -torch.cdist(dlib, dlib)
    try:
        teacher = networks.load("faceplugin_feature")(images)
        similarity["faceplugin_feature (teacher)"] = teacher @ teacher.T
    except InputError as missing:
        print(f"the agreement with the teacher is not measured: {missing}")
    pairs = itertools.combinations(similarity, 2)
    agreement = {f"{a}, {b}": recognition.agreement(similarity[a], similarity[b]) for a, b in pairs}
    return {"spearman": agreement, "finds_itself": found}


def overlay(images: Tensor, points: Tensor, labels: Tensor) -> Tensor:
    """Return faces with their points, and below them their regions in colour: `[3, 256, 128 N]`."""
    columns = []
    for image, p, classes in zip(to_uint8(images), (points + 0.5) / 4 - 0.5, labels, strict=True):
        marked = draw_keypoints(image, p[None], colors="lime", radius=1)
        masks = torch.stack([classes == i for i in range(len(COLOURS))])
        columns.append(torch.cat([marked, draw_segmentation_masks(image, masks, 0.6, COLOURS)], 1))
    return from_uint8(torch.cat(columns, 2))


def _size(network: str) -> int:
    return sum(p.numel() for p in networks.load(network).parameters())
