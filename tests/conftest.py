"""A tiny model with the real classes: 32 px images, 8 x 8 latents, random weights by seed."""

import multiprocessing
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from PIL import Image

from lafr.data.degradation.first_order import Degradation
from lafr.data.faces import Faces
from lafr.models.adapter import build_adapter
from lafr.models.base.model import new_base
from lafr.models.restorer import Restorer

SIZE = 32
BASE = dict(
    vae=dict(
        block_out_channels=[8, 16, 16],
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
        sample_size=SIZE,
        scaling_factor=1.7,
    ),
    unet=dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=[16, 32],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=4,
        use_linear_projection=True,
    ),
    scheduler=dict(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
    ),
)
ADAPTER = dict(latent_channels=4, width=16, code_dim=8, extractor_blocks=1, mapper_blocks=1)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def vouched_bases(tmp_path_factory):
    """Models that tests save name bases outside their own folders; set before any process is started from here."""
    os.environ["LAFR_BASES"] = str(tmp_path_factory.getbasetemp())


@pytest.fixture
def base():
    return new_base(**BASE)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    new_base(**BASE).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def codebook_adapter():
    torch.manual_seed(0)
    adapter = build_adapter("codebook", **ADAPTER, num_codes=16)
    adapter.quantizer.initialise(torch.randn(4, 8, 8, 8), torch.Generator().manual_seed(0))
    return adapter


@pytest.fixture
def restorer(base_folder, codebook_adapter):
    return Restorer.from_base(base_folder, codebook_adapter, SIZE, timestep=200, lora=dict(rank=2, alpha=4))


def lq():
    """A batch of two random images, the same at every call."""
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture
def trained(restorer):
    """A restorer whose LoRA is no longer zero; frozen, as torch multiplies otherwise where a gradient is wanted."""
    with torch.no_grad():
        for parameter in restorer.denoiser.lora_parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return restorer.requires_grad_(False).eval()


@pytest.fixture
def degradation():
    return Degradation()


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory):
    """Ten smooth random pictures, 40 px: not faces, but images that a degradation changes."""
    folder = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for i in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def faces(face_folder):
    """The same pictures as training faces: `faces[i]` is `[3, 32, 32]`."""
    return Faces(sorted(face_folder.glob("*.png")), SIZE)


@pytest.fixture
def accelerator():
    """Make an `Accelerator` on the CPU that shares no state with an earlier one."""

    def make(accumulation: int = 1) -> Accelerator:
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        return Accelerator(cpu=True, gradient_accumulation_steps=accumulation)

    return make


def enter_group(rank, world, port):
    """Make this process number `rank` of `world`, as `accelerate launch` would on the CPUs of one machine."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


@pytest.fixture(scope="session")
def workers():
    """Start new processes in which the packages are imported already (a fork of a server that did nothing else)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "hydra", "lafr.training.loop", "lafr.training.validation"])
    return context


@pytest.fixture
def model_folder(restorer, tmp_path):
    """A saved restorer that needs no base model."""
    folder = tmp_path / "saved model"
    restorer.save_pretrained(folder, full=True)
    return folder
