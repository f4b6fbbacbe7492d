"""What is computed once and kept gives the losses that computing it at each step gives."""

import pytest
import torch
from conftest import SIZE
from torch import nn

from lafr.data.stream import PairStream
from lafr.losses.appearance import LatentL1, PerceptualSTLPIPS, PixelMSE
from lafr.losses.kept import Kept
from lafr.losses.multilevel import MultiLevelLoss
from lafr.losses.structure import LandmarkDistance, LandmarkHeatmap
from lafr.networks.landmarkers import Landmarks
from lafr.training.baselines import EncoderObjective
from lafr.training.objectives import AlignmentObjective, RestorationObjective


class Landmarker(nn.Module):
    """Counts the images that it is asked about."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, image):
        self.seen += len(image)
        return Landmarks(image, image.mean(-1)[..., :2])


def loss_with(landmarker):
    terms = {"pixel_mse": PixelMSE(), "perceptual": PerceptualSTLPIPS(), "latent_l1": LatentL1()}
    terms |= {"heatmap": LandmarkHeatmap(landmarker), "distance": LandmarkDistance(landmarker)}
    return MultiLevelLoss(terms, dict.fromkeys(terms, 1.0) | {"heatmap": 0.0})


@pytest.fixture
def batches(faces, degradation):
    """Pairs of two epochs and a half, two at a time: most faces come back, mirrored or not."""
    pairs = PairStream(faces, degradation, 0)
    pairs.identified = True
    items = [pairs[n] for n in range(26)]
    for one in items:
        same = [other for other in items if other["face"] == one["face"]]
        assert all(torch.equal(one["hq"], other["hq"]) for other in same)
    return [torch.utils.data.default_collate(items[k : k + 2]) for k in range(0, len(items), 2)]


def test_kept_outputs_give_equal_losses_and_gradients_and_each_face_is_computed_once(restorer, batches):
    landmarker = Landmarker()
    objective = RestorationObjective(restorer, loss_with(landmarker)).train()
    found = {}
    for name, kept in (("plain", None), ("kept", Kept(1.0, 1000))):
        objective.kept, landmarker.seen, found[name] = kept, 0, []
        for batch in batches:
            objective.zero_grad()
            terms = objective(batch)
            objective.total(terms).backward()
            gradient = [p.grad.clone() for p in restorer.denoiser.lora_parameters()]
            found[name].append(([value.detach() for value in terms.values()], gradient))
        images = 2 * len(batches)
        faces = {int(face) for batch in batches for face in batch["face"]}
        # of the restored image always; of a network's first batch nothing is kept yet
        assert landmarker.seen - images == images if kept is None else landmarker.seen - images <= len(faces) + 2
    torch.testing.assert_close(found["plain"], found["kept"], rtol=1e-5, atol=1e-6)
    assert kept.hits > 0 and kept.misses > 0

    # validation names no faces: its pairs have numbers of their own
    before = kept.hits + kept.misses
    objective({key: value for key, value in batches[0].items() if key != "face"})
    assert kept.hits + kept.misses == before


def test_what_is_kept_changes_no_bit_whatever_came_before_and_whatever_fits(restorer, batches):
    objective = RestorationObjective(restorer, loss_with(Landmarker())).train()
    runs = []
    for budget, first in ((1.0, 0), (1.0, 7), (1e-5, 5)):
        objective.kept, objective.kept_lq = Kept(budget, 1000), Kept(budget, 1000)
        for batch in batches[first:]:
            terms = objective(batch)
        runs.append({name: float(value.detach()) for name, value in terms.items()})
    assert all(run == runs[0] for run in runs)


def test_the_budget_is_kept_to_and_small_outputs_come_first():
    small, large = (lambda x: x.mean((1, 2, 3)) + 1), (lambda x: [x + 1, x - 1])
    kept, images = Kept(2600e-9, 100), torch.rand(8, 3, 4, 4)
    for _ in range(3):
        for network in (large, small):
            assert len(kept(network, images, range(8))) in (2, 8)
    held = {network: len(outputs) for network, outputs in kept._outputs.items()}
    # 8 times 4 bytes would fit 100 times: 400 bytes are set aside, and of 384 bytes each five fit in the rest
    assert held == {large: 5, small: 8} and kept.left == 2600 - 400 - 5 * 384


def test_lq_latents_serve_a_later_stage_and_never_one_that_trains_the_encoder(restorer, batches, codebook_adapter):
    kept = Kept(1.0, 1000)
    stages = [AlignmentObjective(restorer, {"latent_l1": 1.0}), RestorationObjective(restorer, loss_with(Landmarker()))]
    plain = [float(stage(batches[k])["latent_l1"].detach()) for stage in stages for k in (0, 1)]
    for stage in stages:
        stage.kept_lq = kept
    assert [float(stage(batches[k])["latent_l1"].detach()) for stage in stages for k in (0, 1)] == pytest.approx(plain)
    assert (kept.hits, kept.misses) == (2, 6)
    encoder = EncoderObjective(restorer, loss_with(Landmarker()))
    encoder.kept_lq = kept
    encoder.total(encoder(batches[0])).backward()
    assert restorer.codec.vae.encoder.conv_in.weight.grad.abs().sum() > 0
    assert (kept.hits, kept.misses) == (2, 6) and SIZE == 32
