"""Stand-ins for what the full-size path needs and nobody may copy: of the published names, layouts and folders.

The base model is small, the face networks are of their own size, all with random weights. Faces are the packaged ones,
each drawn many ways.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from conftest import BASE
from PIL import Image
from trunks import untrained

from lafr.data.degradation.first_order import Degradation
from lafr.data.degradation.operators import degraded
from lafr.data.faces.selection import read_names
from lafr.data.packaged import LANDMARKS, aligned
from lafr.images import from_pil, resize_pil, write_image
from lafr.models.base.model import new_base
from lafr.networks.held_out import AdaFace
from lafr.networks.landmarkers import AWingFAN
from lafr.networks.parsers import ParseNet
from lafr.networks.recognisers import ArcFaceIRSE50
from lafr.storage import shipped
from lafr.weights import EXTERNAL

SIDE = 128  # of the faces and the model, in pixels
PAIRS = 4
# DAEFR's ranges, which the severe CelebA-Test was degraded by (configs/degradation/daefr.yaml)
SEVERE = Degradation((0.1, 15), (0.8, 30), (0, 20), (30, 100), 41, 0.5, reference_resolution=512)
# four levels each, as in Stable Diffusion: 1/8 of the side, and 1/64 in the middle of the UNet
VAE = BASE["vae"] | dict(
    block_out_channels=[8, 8, 16, 16],
    down_block_types=["DownEncoderBlock2D"] * 4,
    up_block_types=["UpDecoderBlock2D"] * 4,
    scaling_factor=0.18215,
    sample_size=SIDE,
)
UNET = BASE["unet"] | dict(
    sample_size=SIDE // 8,
    block_out_channels=[16, 32, 32, 32],
    down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    attention_head_dim=[2, 4, 4, 4],
)


def write_all(folder: Path) -> None:
    """Write into an empty folder what the user would have downloaded, where the user would have put it."""
    new_base(VAE, UNET, BASE["scheduler"]).save_pretrained(folder / "data" / "sd21_base")
    write_networks(folder / "weights")
    write_faces(folder)


def write_networks(folder: Path) -> None:
    """Write the networks of the loss and of the metrics, and the line by which the user vouches for each."""
    folder.mkdir()
    torch.manual_seed(0)
    # file -> what its published layout holds
    states = {
        "arcface_irse50": ArcFaceIRSE50().backbone.state_dict(),
        "awing_fan": {"state_dict": AWingFAN().network.state_dict()},
        "parsenet": ParseNet().network.state_dict(),
        "adaface": {"state_dict": {f"model.{key}": value for key, value in AdaFace().state_dict().items()}},
        "torchvision_vgg16": untrained("vgg").state_dict(),
        "torchvision_alexnet": untrained("alex").state_dict(),
    }
    lines = []
    for name, state in states.items():
        path = folder / EXTERNAL[name].name
        torch.save(state, path)
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def write_faces(folder: Path) -> None:
    """Write FFHQ's images by their published names, two short lists of names, and pairs named as CelebA-Test's."""
    names = [*read_names(shipped("ffhq_600.txt"))[:32], *read_names(shipped("ffhq_val.txt"))[:8]]
    (folder / "train.txt").write_text("\n".join(names[:32]), encoding="utf-8")
    (folder / "val.txt").write_text("\n".join(names[32:]), encoding="utf-8")
    faces = drawn_faces(len(names) + PAIRS)
    for name in names:
        # FFHQ keeps a thousand images to a folder
        write_image(next(faces), folder / "images1024x1024" / f"{name[:2]}000" / f"{name}.png")
    for number in range(PAIRS):
        face = resize_pil(next(faces), SIDE)
        hq, lq = degraded(from_pil(face), SEVERE, np.random.default_rng([1, number]))
        write_image(hq, folder / "celeba_512_validation" / f"{number:08d}.png")
        write_image(lq, folder / "self_celeba_512_v2" / f"{number:08d}.png")


def drawn_faces(count: int, side: int = 2 * SIDE) -> Iterator[Image.Image]:
    """Yield the packaged faces in turn, each mirrored, turned, cropped and toned by its number."""
    whole = [resize_pil(aligned(name), side) for name in LANDMARKS]
    for number in range(count):
        rng = np.random.default_rng(number)
        face = whole[number % len(whole)].rotate(rng.uniform(-4, 4), Image.Resampling.BICUBIC)
        left, top, margin = rng.integers(4, 12, 3)
        face = face.crop((left, top, side - margin, side - margin)).resize((side, side), Image.Resampling.LANCZOS)
        if rng.random() < 0.5:
            face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        tone = rng.uniform(0.85, 1.15, 3)
        yield Image.fromarray(np.clip(np.asarray(face) * tone, 0, 255).astype(np.uint8))
