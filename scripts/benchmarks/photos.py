"""Likeness of the faces of whole photos to the undegraded photo, before and after `lafr restore`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from lafr.alignment import crop
from lafr.data.degradation.first_order import first_order, odd
from lafr.data.degradation.operators import apply, as_text
from lafr.data.packaged import on_this_machine
from lafr.evaluation import markdown
from lafr.images import from_pil, read_pil, to_pil, write_image
from lafr.metrics.face import IdentityCosine, IdentityDistance
from lafr.models.restorer import Restorer
from lafr.photos.detectors import Detection
from lafr.photos.restorer import PhotoRestorer
from lafr.weights import locate

PHOTOS = {"astronaut": "astronaut", "t1_0": "insightface_t1"}  # a face of each photo -> its file
MEASURES = {"sface": IdentityCosine, "dlib": IdentityDistance}


def photos(cfg: DictConfig) -> dict:
    """Return for each photo and severity what became of each face and how like its original it was and is."""
    restorer = PhotoRestorer(Restorer.from_pretrained(cfg.model.folder, merged=True), guard=cfg.guard)
    measures = {name: kind(name) for name, kind in MEASURES.items()}
    files = [PHOTOS[name] for name in on_this_machine(list(PHOTOS))]
    found = {}
    for file, (severity, values) in tqdm(
        [(file, one) for file in files for one in cfg.severities.items()], desc="photos", unit="photo"
    ):
        original = read_pil(locate(file))
        given = degraded(original, values, np.random.default_rng([cfg.seed, files.index(file)]))
        faces = restorer.detect(original)
        result = restorer.restore(given, fidelity=cfg.fidelity, aligned=False, detections=faces)
        truth, before, after = (crops(one, faces, restorer.resolution) for one in (original, given, result.image))
        likeness = {
            name: {"input": measure(before, truth).tolist(), "restored": measure(after, truth).tolist()}
            for name, measure in measures.items()
        }
        shown = [from_pil(one.convert("RGB")) for one in (original, given, result.image)]
        write_image(torch.cat(shown, dim=2), Path(cfg.pictures) / f"{file}_{severity}.png")
        reports = [{"status": face.status, "reason": face.reason, "side": face.side} for face in result.faces]
        found[f"{file}, {severity}"] = {"faces": reports, **likeness}
    return {
        "model": str(cfg.model.folder),
        "fidelity": cfg.fidelity,
        "guard": cfg.guard,
        "severities": {name: list(values) for name, values in cfg.severities.items()},
        "photos": found,
    }


def degraded(photo: Image.Image, values: Sequence[float], rng: np.random.Generator) -> Image.Image:
    """Return the whole photo blurred, reduced, noisy, compressed and enlarged again, as GFPGAN's chain does."""
    sigma, factor, noise, quality = values
    chain = first_order(
        photo.height, photo.width, odd(6 * sigma), sigma, sigma, 0, factor, noise, int(quality), as_text(rng)
    )
    return to_pil(apply(chain, from_pil(photo)))


def crops(photo: Image.Image, faces: Sequence[Detection], resolution: int) -> Tensor:
    """Return the aligned faces of a photo, `[N, 3, S, S]` in [-1, 1]."""
    return torch.stack([from_pil(crop(photo.convert("RGB"), face.points, resolution)[0]) for face in faces])


def photos_table(record: dict) -> str:
    """Return the counts and the mean likeness of the faces that were restored."""
    rows = []
    for name, found in record["photos"].items():
        restored = [index for index, face in enumerate(found["faces"]) if face["status"] == "restored"]
        row = [name, str(len(found["faces"])), str(len(restored))]
        for measure, better in (("sface", 1), ("dlib", -1)):
            before, after = (np.array(found[measure][side])[restored] for side in ("input", "restored"))
            nearer = int((better * (after - before) > 0).sum())
            row += [f"{before.mean():.3f}", f"{after.mean():.3f}", str(nearer)] if restored else [""] * 3
        rows.append(row)
    head = ["photo", "faces", "restored", "SFace, input ↑", "restored ↑", "nearer", "dlib, input ↓", "restored ↓"]
    guard = "with" if record["guard"] else "without"
    return (
        f"{markdown.table([*head, 'nearer'], rows)}\n\n"
        f"Means over the restored faces, to the undegraded photo; `{record['model']}`, {guard} the guard, fidelity "
        f"{record['fidelity']}. Nearer: faces that are more like their original than the degraded ones are."
    )
