"""The record of the miniature's prior: images are counted over runs, and the samples are DDIM's."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lafr.errors import InputError
from lafr.training.record import remember
from scripts.benchmarks.prior import ERRORS, curve, sampled, tiled


def test_images_are_counted_over_runs_of_different_batch_sizes(tmp_path):
    for name, batch_size, steps in (("one", 32, (250, 500)), ("two", 8, (100,))):
        (tmp_path / name / "prior").mkdir(parents=True)
        settings = {"stage": {"prior": {"batch_size": batch_size}}}
        if name == "one":
            remember(tmp_path / name, settings, {}, {})
        else:  # as version 0.1 wrote it
            (tmp_path / name / "config.json").write_text(json.dumps(settings))
        lines = [{"step": 10, "eps_mse": 1.0}]
        lines += [{"step": step, **{f"validation/{error}": step / 1000 for error in ERRORS}} for step in steps]
        (tmp_path / name / "prior" / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with open(tmp_path / "one" / "prior" / "log.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 520, "eps_mse": 1.0}\n{"step": 53')  # trained on after its last validation; a torn line
    points = curve([tmp_path / "one", tmp_path / "two"])
    assert [(point["images"], point["eps_mse"]) for point in points] == [(8000, 0.25), (16000, 0.5), (17440, 0.1)]
    with pytest.raises(InputError, match="absent' is no folder of a run"):
        curve([tmp_path / "absent"])


class Knows(nn.Module):
    """Predicts the noise of one latent exactly."""

    def __init__(self, z0, alphas_cumprod):
        super().__init__()
        self.z0, self.abar = z0, alphas_cumprod
        self.config = SimpleNamespace(sample_size=z0.shape[-1], in_channels=z0.shape[0])

    def forward(self, z_t, t, null_embedding):
        return SimpleNamespace(sample=(z_t - self.abar[t] ** 0.5 * self.z0) / (1 - self.abar[t]) ** 0.5)


def test_a_network_that_knows_one_latent_is_led_to_it_from_any_noise(base):
    z0 = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    base.null_embedding = torch.zeros(1, 1, 1)
    base.unet = Knows(z0, base.scheduler.alphas_cumprod)
    base.codec = lambda: SimpleNamespace(to=lambda device: SimpleNamespace(decode=lambda z: z))
    found = sampled(base, 2, 10, 0, torch.device("cpu"))
    # the last step ends at the schedule's first noise, whose share is sqrt(1 - 0.99915)
    assert found.shape == (2, 4, 8, 8) and (found - z0).abs().max() < 0.15


def test_a_sheet_is_filled_row_by_row():
    images = torch.arange(3.0)[:, None, None, None].expand(3, 3, 1, 1)
    assert tiled(images)[0].tolist() == [[0, 1], [2, -1]]
