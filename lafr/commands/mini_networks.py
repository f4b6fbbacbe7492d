"""Score the miniature's recogniser, landmarker and parser: `python -m lafr.commands.mini_networks faces=val|london`."""

import itertools
import shlex
import sys
import zlib
from pathlib import Path

from lafr.commands.launch import run

COMMAND = shlex.join(["python", "scripts/eval_networks.py", *sys.argv[1:]])


def probes(faces, degradation, seed: int) -> dict:
    """Return the copies that must find their own face: degraded as they are, or mirrored, moved and recoloured too."""
    import numpy as np
    import torch

    from lafr.miniature.labelled import random_affine, recoloured, warped

    plain, moved = [], []
    for i in range(len(faces)):
        rng = np.random.default_rng([seed, zlib.crc32(faces.name(i).encode())])
        plain.append(degradation(faces[i], rng))
        other = recoloured(warped(faces[i].flip(-1), random_affine(rng, 1.0)), rng)
        moved.append(degradation(other, rng))
    return {"x16": torch.stack(plain), "x16, mirrored, moved, recoloured": torch.stack(moved)}


def main(cfg) -> None:
    """Print and write every number, and a picture of points and regions."""
    import torch
    from hydra.utils import instantiate
    from torch.nn.functional import normalize

    from lafr import networks
    from lafr.data.faces import Faces, read_list
    from lafr.errors import InputError
    from lafr.images import list_images, write_image
    from lafr.metrics import recognition as score
    from lafr.miniature.labelled import read_landmarks
    from lafr.miniature.regions import draw_regions
    from lafr.networks.crops import SimilarityCrop, resize
    from lafr.networks.mini import REGIONS
    from lafr.provenance import provenance
    from lafr.storage import write_json

    root, chosen = Path(cfg.data.root), {"val": "val.txt", "london": "london"}
    if cfg.faces not in chosen:
        raise InputError(f"faces={cfg.faces} is not known; use one of {', '.join(chosen)}")
    training = read_landmarks(root, ["congress", "omi"])
    held_out = read_list(root / "val.txt", root)
    paths = held_out if cfg.faces == "val" else list_images(root / "london")
    landmarks = training | read_landmarks(root, ["london"])
    names = ["/".join(path.parts[-2:]) for path in paths]
    faces = Faces(paths, 128)
    images = torch.stack([faces[i] for i in range(len(faces))])
    truth = torch.stack([torch.from_numpy(landmarks[name]) for name in names])
    copies = probes(faces, instantiate(cfg.degradation, _convert_="all"), cfg.seed)

    hidden = {"/".join(path.parts[-2:]) for path in held_out}
    others = Faces([root / name for name in training if name not in hidden], 128)
    crop = SimilarityCrop()
    pixels = lambda batch: resize(crop(batch), 56)  # noqa: E731
    mean, basis = score.whitening(torch.stack([pixels(others[i][None])[0] for i in range(len(others))]), 128)
    with torch.no_grad():
        looks = {
            "raw pixels": lambda x: score.as_directions(pixels(x)),
            "PCA-whitened pixels": lambda x: score.as_directions(pixels(x), mean, basis),
            "mini_recogniser": networks.load("mini_recogniser"),
            "sface": networks.load("sface"),
        }
        seen = {row: look(images) for row, look in looks.items()}
        found = {row: {probe: score.finds_itself(normalize(look(x), dim=1), normalize(seen[row], dim=1))
                       for probe, x in copies.items()} for row, look in looks.items()}  # fmt: skip
        similarity = {row: seen[row] @ seen[row].T for row in ("mini_recogniser", "sface")}
        dlib = networks.load("dlib")(images).double()
        similarity["dlib"] = -torch.cdist(dlib, dlib)
        try:
            teacher = networks.load("faceplugin_feature")(images)
            similarity["faceplugin_feature (teacher)"] = teacher @ teacher.T
        except InputError as missing:
            print(f"what the student can reach is not measured: {missing}")
        points = networks.load("mini_landmarker")(images).points
        labels = networks.load("mini_parser")(images).argmax(1)
    drawn = torch.stack([torch.from_numpy(draw_regions(p.numpy(), 128)) for p in truth]).long()
    iou = score.region_iou(labels, drawn, len(REGIONS))
    record = {
        "faces": cfg.faces,
        "images": len(faces),
        "spearman": {f"{a}, {b}": score.agreement(similarity[a], similarity[b])
                     for a, b in itertools.combinations(similarity, 2)},
        "finds_itself": found,
        "landmark_nme_percent": 100 * float(score.normalised_mean_error(points, truth).mean()),
        "region_iou": dict(zip(REGIONS[1:], iou[1:].tolist(), strict=True)),
        "region_iou_mean": float(iou[1:].mean()),
        "parameters": {n: sum(p.numel() for p in networks.load(f"mini_{n}").parameters())
                       for n in ("recogniser", "landmarker", "parser")},
        **provenance(COMMAND, cfg.seed),
    }  # fmt: skip
    target = Path(cfg.output) / f"{cfg.faces}.json"
    write_json(record, target)
    picture = Path("runs/eval_networks") / f"{cfg.faces}.png"
    write_image(overlay(images[:12], points[:12], labels[:12]), picture)
    for key in ("spearman", "finds_itself", "landmark_nme_percent", "region_iou", "region_iou_mean"):
        print(key, record[key])
    print(f"numbers  {target}\npicture  {picture} (points, regions)")


def overlay(images, points, labels):
    """Return faces with their points, and below them their regions in colour: `[3, 256, 128 N]`."""
    import torch
    from torchvision.utils import draw_keypoints, draw_segmentation_masks

    from lafr.images import from_uint8, to_uint8

    colours = ["black", "peachpuff", "saddlebrown", "deepskyblue", "orange", "crimson", "white"]
    columns = []
    for image, p, classes in zip(to_uint8(images), (points + 0.5) / 4 - 0.5, labels, strict=True):
        marked = draw_keypoints(image, p[None], colors="lime", radius=1)
        masks = torch.stack([classes == i for i in range(len(colours))])
        columns.append(torch.cat([marked, draw_segmentation_masks(image, masks, 0.6, colours)], 1))
    return from_uint8(torch.cat(columns, 2))


def command() -> None:
    """Run the command line."""
    run(main, "eval_networks")


if __name__ == "__main__":
    command()
