"""Stable Diffusion 2.1's own size, 512 px, with random weights: a step of each stage fits in 20 GB, on a CPU."""

import gc
import os
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from lafr.data.packaged import ASTRONAUT, PackagedFaces
from lafr.data.stream import PairStream
from lafr.losses.appearance import LatentL1, PixelMSE
from lafr.losses.multilevel import MultiLevelLoss
from lafr.models.base.model import new_base
from lafr.models.base.supported import KNOWN
from lafr.models.denoiser import Denoiser
from lafr.models.restorer import Restorer
from lafr.training.loop import train
from lafr.training.objectives import AlignmentObjective, CodebookObjective, RestorationObjective

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def all_cores(one_thread):
    torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(1)


def millions(parameters):
    return sum(p.numel() for p in parameters) / 1e6


def peak_of(work):
    """Run `work`; return its seconds and this process's peak resident memory meanwhile, in GB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return seconds, 1.024e-6 * float(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def untrained(model):
    """The restorer of `model=sd21_base adapter=sd`, on random weights of Stable Diffusion 2.1's shapes."""
    shapes = KNOWN["sd21_base"]
    base = new_base(vae=shapes.vae, unet=shapes.unet, scheduler=shapes.scheduler)
    assert millions(base.vae.parameters()) == pytest.approx(83.65, abs=0.01)
    assert millions(base.unet.parameters()) == pytest.approx(865.9, abs=0.05)
    denoiser = Denoiser.from_base(base.unet, base.scheduler, model.build.timestep)
    assert millions(denoiser.parameters()) == pytest.approx(787.6, abs=0.2)
    denoiser.add_lora(rank=4, alpha=8)
    return Restorer(base.codec(), instantiate(model.build.adapter), denoiser, model.resolution)


@pytest.mark.slow
def test_a_step_of_each_stage_at_full_size_stays_under_20_gb_and_so_does_a_restored_image(
    accelerator, tmp_path, all_cores
):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        restorer = untrained(compose("train", ["+experiment=ffhq_0.9pct"]).model)
        degradation = instantiate(compose("train", ["run_name=x", "degradation=osediff_face"]).degradation)
    pairs = PairStream(PackagedFaces(512, ASTRONAUT), degradation, 0)
    loss = MultiLevelLoss({"pixel_mse": PixelMSE(), "latent_l1": LatentL1()}, {"pixel_mse": 1.0, "latent_l1": 0.3})
    stages = {
        "codebook": lambda: CodebookObjective(restorer, {"latent_l1": 1.0, "commitment": 0.25}),
        "alignment": lambda: AlignmentObjective(restorer, {"latent_l1": 1.0, "feature_mse": 1.0, "index_ce": 0.1}),
        "restoration": lambda: RestorationObjective(restorer, loss),
    }
    for name, build in stages.items():
        objective, run = build(), {"max_steps": 1, "batch_size": 1, "gradient_checkpointing": True, "log_every": 1}
        before = {key: value.clone() for key, value in objective.trained_state().items()}
        seconds, peak = peak_of(lambda: train(objective, pairs, accelerator(), tmp_path / name, name=name, **run))  # noqa: B023
        trained = millions(p for p in objective.parameters() if p.requires_grad)
        print(f"\n{name}: {seconds:.0f} s, peak {peak:.2f} GB resident, {trained:.3f} M parameters trained")
        assert peak < 20
        after = objective.trained_state()
        assert all(value.isfinite().all() for value in after.values())
        assert any(not torch.equal(value, after[key]) for key, value in before.items())

    restorer.requires_grad_(False).eval()
    picture = Image.fromarray(((pairs[0]["lq"] + 1) * 127.5).byte().permute(1, 2, 0).numpy())
    restored = []
    seconds, peak = peak_of(lambda: restored.append(restorer(picture)))
    print(f"one image: {seconds:.0f} s, peak {peak:.2f} GB resident")
    assert peak < 20
    assert restored[0].size == (512, 512)
    assert restored[0].tobytes() != picture.tobytes()
