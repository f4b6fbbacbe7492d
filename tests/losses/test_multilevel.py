"""Terms that share a network: it is asked once, the HQ side carries no gradient, and a model says what it saw."""

import pytest
import torch
from conftest import SIZE
from torch import nn

from lafr.errors import InputError
from lafr.evaluation.summary import mean_and_interval, trained_on
from lafr.evaluation.tables import markdown_table, marks
from lafr.losses.appearance import LatentL1, PerceptualSTLPIPS, PixelMSE
from lafr.losses.identity import IdentityCosine
from lafr.losses.multilevel import MultiLevelLoss, Restoration
from lafr.models.restorer import Restorer
from lafr.training.objectives import RestorationObjective


class Counted(nn.Module):
    """A recogniser that counts its calls: means of eight columns."""

    origins = frozenset({"counted", "its teacher"})

    def __init__(self):
        super().__init__()
        self.calls, self.dtypes = [], []

    def forward(self, image):
        self.calls.append(torch.is_grad_enabled())
        self.dtypes.append((image @ image.transpose(2, 3)).dtype)
        return image.unflatten(3, (8, -1)).mean((1, 2, 4))


def restoration():
    images = torch.rand(2, 3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Restoration(images[0].requires_grad_(), images[1], torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("reported_first", [True, False])
def test_a_shared_network_is_asked_once_a_side_and_still_trains(reported_first):
    network, r = Counted(), restoration()
    weights = {"reported": 0.0, "trained": 1.0} if reported_first else {"trained": 1.0, "reported": 0.0}
    loss = MultiLevelLoss({name: IdentityCosine(network) for name in weights}, weights)
    terms = loss(r)
    assert sorted(network.calls) == [False, True]
    assert terms["trained"].requires_grad and not terms["reported"].requires_grad
    assert torch.equal(terms["trained"], terms["reported"])
    terms["trained"].backward()
    assert r.restored.grad.abs().sum() > 0


class Scores(Counted):
    """A recogniser that only scores."""

    @torch.no_grad()
    def forward(self, image):
        return super().forward(image)


def test_two_trained_terms_cost_two_calls_in_all_and_a_network_without_a_gradient_is_refused():
    network = Counted()
    loss = MultiLevelLoss({n: IdentityCosine(network) for n in "ab"}, {"a": 1.0, "b": 2.0})
    loss(restoration())
    assert sorted(network.calls) == [False, True]
    with pytest.raises(InputError, match="Scores computes no gradient"):  # AdaFace did, without a word
        MultiLevelLoss({"identity": IdentityCosine(Scores())}, {"identity": 1.0})(restoration())
    reported = MultiLevelLoss({"identity": IdentityCosine(Scores())}, {"identity": 0.0})
    assert reported(restoration())["identity"] > 0


def test_networks_see_float32_under_autocast():
    network = Counted()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        IdentityCosine(network)(restoration())
    assert set(network.dtypes) == {torch.float32}


def test_identity_is_one_minus_the_cosine_whatever_the_batch():
    r = restoration()
    a, b = (Counted()(image) for image in (r.restored, r.hq))
    expected = 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))
    torch.testing.assert_close(IdentityCosine(Counted())(r), expected.mean())
    alone = Restoration(r.restored[:1], r.hq[:1], r.z_restored, r.z_hq)
    torch.testing.assert_close(IdentityCosine(Counted())(alone), expected[0])


def test_a_model_remembers_what_its_weighted_terms_looked_through(restorer, tmp_path):
    terms = {"pixel": PixelMSE(), "identity": IdentityCosine(Counted()), "perceptual": PerceptualSTLPIPS("alex")}
    weights = {"pixel": 1.0, "identity": 0.1, "perceptual": 0.0}
    RestorationObjective(restorer, MultiLevelLoss(terms, weights))
    assert restorer.trained_with == {"counted", "its teacher"}  # the perceptual term is only reported
    restorer.save_pretrained(tmp_path / "model", full=True)
    assert Restorer.from_pretrained(tmp_path / "model").trained_with == {"counted", "its teacher"}


def metric(*origins):
    measure = lambda image, hq: image.mean((1, 2, 3))  # noqa: E731
    measure.origins = frozenset(origins)
    return measure


def test_a_score_by_the_teacher_of_the_trained_network_says_so(restorer):
    restorer.trained_with = frozenset({"mini_recogniser", "teacher"})
    metrics = {"own": metric("mini_recogniser"), "teacher": metric("teacher"), "other": metric("sface"), "psnr": min}
    assert trained_on({"LAFR": restorer}, metrics) == {"LAFR": ["own", "teacher"]}
    restorer.trained_with = frozenset()
    assert trained_on({"LAFR": restorer}, metrics) == {}


def test_a_failed_detection_is_counted_and_never_averaged_in():
    values = torch.tensor([1.0, float("nan"), 3.0, float("nan")]).numpy()
    found = mean_and_interval(values)
    assert found["mean"] == 2 and found["failed"] == 2 and 1 <= found["low"] <= found["high"] <= 3
    assert mean_and_interval(values[1:2]) == {"mean": None, "low": None, "high": None, "failed": 1}
    assert "failed" not in mean_and_interval(values[[0, 2]])


def test_marks_and_failures_stand_beside_the_number():
    score = lambda mean, **more: {"mean": mean, "low": mean, "high": mean} | more  # noqa: E731
    nothing = {"mean": None, "low": None, "high": None, "failed": 3}
    record = {
        "rows": {
            "LQ input": {"psnr_rgb": score(20.0)},
            "LAFR": {"psnr_rgb": score(21.0, failed=1)},
            "x": {"psnr_rgb": nothing},
        },
        "trained_on": {"LAFR": ["psnr_rgb"]},
        "not_measured": {"deg": "its weights are missing; get them"},
    }
    lines = markdown_table(record).splitlines()
    assert lines[3:5] == ["| LAFR | **21.00 (21.00–21.00)† [1 failed]** |", "| x | failed [3 failed] |"]
    assert lines[6].startswith("†") and lines[8].startswith("deg ") and "its weights are missing; get them" in lines[8]
    assert marks(record) == {("LAFR", "psnr_rgb"): "best"}


def test_a_loss_of_latents_decodes_nothing_and_gives_the_gradient_of_the_whole_one(restorer, monkeypatch):
    batch = {
        "lq": torch.rand(2, 3, SIZE, SIZE) * 2 - 1,
        "hq": torch.rand(2, 3, SIZE, SIZE) * 2 - 1,
        "n": torch.arange(2),
    }

    def gradients(terms, weights):
        objective = RestorationObjective(restorer, MultiLevelLoss(terms, weights))
        objective.total(objective(batch)).backward()
        found = [p.grad.clone() for p in objective.parameters() if p.requires_grad]
        objective.zero_grad()
        return found

    whole = gradients({"latent_l1": LatentL1(), "pixel": PixelMSE()}, {"latent_l1": 1.0, "pixel": 0.0})
    decoded = []
    monkeypatch.setattr(type(restorer.codec), "decode", lambda self, z: decoded.append(z))
    alone = gradients({"latent_l1": LatentL1()}, {"latent_l1": 1.0})
    assert not decoded
    assert all(torch.equal(a, b) for a, b in zip(whole, alone, strict=True))
