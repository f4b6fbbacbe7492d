"""One evaluation of a tiny model: what the files say is what the scores say."""

import csv
import importlib
import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ADAPTER, SIZE

from lafr.data.benchmarks import Pair, SyntheticBenchmark
from lafr.data.degradation.first_order import Degradation
from lafr.data.faces import Faces
from lafr.errors import InputError
from lafr.evaluation.batches import restore_and_score
from lafr.evaluation.cache_keys import key_of_code, key_of_metric, key_of_restorer
from lafr.evaluation.methods import folder_names, standard_methods
from lafr.evaluation.progress import ProgressLog
from lafr.evaluation.summary import Evaluation, best_median_worst
from lafr.evaluation.sweep import curve_metrics
from lafr.images import as_saved, read_image
from lafr.metrics.codebook import CodeUse
from lafr.metrics.fidelity import psnr_rgb
from lafr.metrics.perceptual import ShiftTolerantLPIPS
from lafr.models.adapter import build_adapter
from lafr.models.restorer import Restorer


@dataclass
class Evaluated:
    """What one run of `restore_and_score` was given, returned and wrote."""

    benchmark: SyntheticBenchmark
    restorer: Restorer
    result: Evaluation
    folder: Path

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [self.benchmark[i] for i in range(len(self.benchmark))]
        return torch.stack([pair.lq for pair in pairs]), torch.stack([pair.hq for pair in pairs])

    def lines(self) -> list[dict[str, str]]:
        with (self.folder / "scores.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


METRICS = {"psnr_rgb": psnr_rgb, "mean_red": lambda image, hq: image[:, 0].mean((1, 2))}


@pytest.fixture(scope="module")
def evaluated(base_folder, face_folder, tmp_path_factory):
    benchmark = SyntheticBenchmark("tiny", Faces(sorted(face_folder.glob("*.png"))[:5], 32), Degradation())
    torch.manual_seed(0)
    adapter = build_adapter("codebook", **ADAPTER, num_codes=16)
    adapter.quantizer.initialise(torch.randn(4, 8, 8, 8), torch.Generator().manual_seed(0))
    restorer = Restorer.from_base(base_folder, adapter, SIZE, timestep=200, lora=dict(rank=2, alpha=4)).eval()
    rows = standard_methods(restorer, {"brighter": lambda lq: lq + 0.1})
    metrics = METRICS | {"st_lpips_alex": ShiftTolerantLPIPS("alex")}
    folder = tmp_path_factory.mktemp("evaluated")
    return Evaluated(
        benchmark, restorer, restore_and_score(benchmark, restorer, rows, metrics, folder, batch_size=2), folder
    )


def test_every_method_makes_the_image_that_its_name_says(evaluated):
    lq, hq = evaluated.stacked()
    restorer, psnr = evaluated.restorer, lambda image: psnr_rgb(image, hq).numpy()
    with torch.no_grad():
        codec = restorer.codec
        expected = {
            "LQ input": lq,
            "codec(LQ)": codec.decode(codec.encode(lq)),
            "adapter only": codec.decode(restorer.adapter(codec.encode(lq))),
            "brighter": lq + 0.1,
            "LAFR": restorer(lq),
            "codec(HQ)": codec.decode(codec.encode(hq)),
        }
    assert list(evaluated.result.scores) == list(expected)
    for row, image in expected.items():
        assert np.allclose(evaluated.result.scores[row]["psnr_rgb"], psnr(image), atol=1e-2), row


def test_the_saved_images_score_what_the_table_says(evaluated):
    _, hq = evaluated.stacked()
    for row, folder in evaluated.result.folders.items():
        if row in evaluated.result.scores:
            saved = torch.stack([read_image(folder / f"{stem}.png") for stem in evaluated.result.stems])
            assert psnr_rgb(saved, hq).tolist() == evaluated.result.scores[row]["psnr_rgb"].tolist(), row


def test_metrics_that_do_not_round_see_rounded_pixels(evaluated):
    red = evaluated.result.scores["brighter"]["mean_red"]
    lq, _ = evaluated.stacked()
    assert np.allclose(red, as_saved(lq + 0.1)[:, 0].mean((1, 2)).numpy(), atol=1e-6)
    assert not np.allclose(red, (lq + 0.1)[:, 0].mean((1, 2)).numpy(), atol=1e-6)


def test_the_means_of_the_csv_are_the_means_of_the_summary(evaluated):
    summary = json.loads(json.dumps(evaluated.result.summary()))
    lines = evaluated.lines()
    assert len(lines) == 5 * 6
    assert sorted({line["image"] for line in lines}) == sorted(evaluated.result.stems)
    for row, metrics in summary.items():
        for metric, numbers in metrics.items():
            mean = np.mean([float(line[metric]) for line in lines if line["row"] == row])
            assert mean == pytest.approx(numbers["mean"], rel=1e-4), (row, metric)
            assert numbers["low"] <= numbers["mean"] <= numbers["high"]


def test_the_latent_gaps_are_mean_absolute_distances_from_the_latents_of_the_truth(evaluated):
    lq, hq = evaluated.stacked()
    with torch.no_grad():
        codec, adapter, denoiser = (getattr(evaluated.restorer, part) for part in ("codec", "adapter", "denoiser"))
        z_lq, z_hq = codec.encode(lq), codec.encode(hq)
        gaps = {
            "latent_gap_before": z_lq - z_hq,
            "latent_gap_after": adapter(z_lq) - z_hq,
            "latent_gap_restored": denoiser(adapter(z_lq)) - z_hq,
        }
    for name, gap in gaps.items():
        assert evaluated.result.latents[name] == pytest.approx(float(gap.abs().mean()), rel=1e-4)


def test_code_use_is_counted_over_the_whole_set(evaluated):
    lq, hq = evaluated.stacked()
    use = CodeUse(evaluated.restorer.adapter)
    with torch.no_grad():
        use.add(evaluated.restorer.codec.encode(lq), evaluated.restorer.codec.encode(hq))
    for name, value in use.summary().items():
        assert evaluated.result.latents[name] == pytest.approx(value)


def test_the_faces_are_ranked_by_the_perceptual_distance(evaluated):
    distance = evaluated.result.scores["LAFR"]["st_lpips_alex"]
    order = np.argsort(distance)
    sheet = read_image(evaluated.folder / "faces.png")
    assert sheet.shape == (3, 32, 3 * 96 + 16)  # five faces: one each, LQ | restored | HQ
    lq, hq = evaluated.stacked()
    for column, face in enumerate([order[0], order[2], order[4]]):
        left = column * (96 + 8)
        assert torch.equal(sheet[:, :, left : left + 32], lq[face])
        assert torch.equal(sheet[:, :, left + 64 : left + 96], hq[face])


def test_the_number_of_images_in_a_batch_changes_no_score(evaluated, tmp_path):
    rows = standard_methods(evaluated.restorer, {})
    again = restore_and_score(evaluated.benchmark, evaluated.restorer, rows, METRICS, tmp_path / "again", batch_size=5)
    assert np.allclose(again.scores["LAFR"]["psnr_rgb"], evaluated.result.scores["LAFR"]["psnr_rgb"], atol=1e-2)
    assert again.stems == evaluated.result.stems


def test_best_median_and_worst_are_the_ends_and_the_middle_of_the_order():
    triples = [torch.full((3, 3, 1, 1), float(i)) for i in range(9)]
    distance = np.array([4, 8, 0, 5, 1, 7, 3, 6, 2.0])  # face 2 is best, face 1 worst
    picture = best_median_worst(triples.__getitem__, distance, each=2)
    columns = [picture[0, :, left].tolist() for left in (0, 3 + 8, 2 * (3 + 8))]
    assert columns == [[2, 4], [6, 0], [5, 1]]


def test_two_methods_never_share_a_folder():
    names = folder_names(["codec(LQ)", "codec_LQ", "CODEC LQ", "GFPGAN", "gfpgan", "..", "a/b", "恢复"])
    assert len({name.lower() for name in names.values()}) == 8
    assert all(re.fullmatch(r"[A-Za-z0-9+-][A-Za-z0-9.+_-]*", name) for name in names.values())


CHANGES = {
    "an adapter's weight": lambda r: next(r.adapter.parameters()).data.view(-1)[0].add_(1e-7),
    "a code": lambda r: r.adapter.quantizer.layers[0].codebook.data.view(-1)[0].add_(1e-3),
    "the LoRA": lambda r: r.denoiser.lora_parameters()[1].data.view(-1)[0].add_(1e-7),
    "the LoRA's strength": lambda r: setattr(r.denoiser.lora_config, "lora_alpha", 5),
    "the time": lambda r: setattr(r.denoiser, "timestep", 201),
    "the latent scale": lambda r: r.codec.vae.register_to_config(scaling_factor=1.8),
    "torch": lambda r: setattr(torch, "__version__", torch.__version__ + "+other"),
}


def test_an_image_of_a_restorer_that_differs_in_one_thing_is_not_kept(restorer, monkeypatch):
    monkeypatch.setattr(torch, "__version__", torch.__version__)
    restorer.requires_grad_(False).eval()
    for what, change in CHANGES.items():
        before = key_of_restorer(restorer)
        assert key_of_restorer(restorer) == before
        change(restorer)
        assert key_of_restorer(restorer) != before, what


def test_a_score_by_another_setting_trunk_or_code_of_a_metric_is_not_kept():
    def tenfold(image, hq):
        return 10 * psnr_rgb(image, hq)

    def elevenfold(image, hq):
        return 11 * psnr_rgb(image, hq)

    elevenfold.__qualname__ = tenfold.__qualname__
    metrics = [psnr_rgb, partial(psnr_rgb), tenfold, elevenfold, Scaled(2.0), Scaled(3.0)]
    metrics += [ShiftTolerantLPIPS("alex"), ShiftTolerantLPIPS("vgg")]
    known = [key_of_metric("a", metric) for metric in metrics]
    assert len(set(known)) == len(metrics)
    assert known == [key_of_metric("a", metric) for metric in metrics]
    assert key_of_metric("b", psnr_rgb) != known[0]
    again = ShiftTolerantLPIPS("alex")
    again(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 32, 32))  # a batch that it caches is no setting
    assert key_of_metric("a", again) == known[6]


class Scaled:
    """A metric with a setting."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, image, hq):
        return self.factor * psnr_rgb(image, hq)


def test_changed_code_of_a_module_or_of_one_inside_a_package_changes_the_key(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "ours" / "deep").mkdir(parents=True)
    for file in ("ours/__init__.py", "ours/deep/__init__.py", "ours/deep/model.py"):
        (tmp_path / file).write_text("A = 1\n", encoding="utf-8")
    package = importlib.import_module("ours")
    before = key_of_code(package)
    assert key_of_code(package) == before
    (tmp_path / "ours/deep/model.py").write_text("A = 2\n", encoding="utf-8")
    assert key_of_code(package) != before


def test_the_curves_axes_are_those_named_else_identity_and_realism():
    metrics = ["psnr_rgb", "st_lpips_vgg", "identity_cos_sface", "niqe"]
    assert curve_metrics(metrics) == ("identity_cos_sface", "niqe")
    assert curve_metrics(metrics, x="psnr_rgb") == ("psnr_rgb", "niqe")
    assert curve_metrics(metrics, y="st_lpips_vgg") == ("identity_cos_sface", "st_lpips_vgg")
    with pytest.raises(InputError, match=r"curve_y .*psnr_rgb, deg"):
        curve_metrics(["psnr_rgb", "deg"])


def test_a_torn_log_loses_the_torn_line_alone_and_the_last_run_is_the_valid_one(tmp_path):
    log = ProgressLog(tmp_path / "torn")
    log.append({"a": 1}, {"a": 2})
    with log.path.open("ab") as file:
        file.write(b'{"run": 1, "a": 3')
    ProgressLog(tmp_path / "torn").append({"a": 4})
    lines = ProgressLog(tmp_path / "torn").lines()
    assert [(line["run"], line["a"]) for line in lines] == [(1, 1), (1, 2), (2, 4)]
    ProgressLog(tmp_path / "two", process=1).append({"a": "old"})
    ProgressLog(tmp_path / "two", process=0).append({"a": "new"})
    assert [line["a"] for line in ProgressLog(tmp_path / "two").lines()] == ["old", "new"]


def test_a_set_metric_sees_all_features_of_a_method_and_of_the_truth_in_order(evaluated, tmp_path):
    class Features:
        def __init__(self):
            self.seen = []

        def features(self, image):
            return image.flatten(1)[:, :7]

        def score(self, features, reference, seed):
            self.seen.append((features, reference, seed))
            return {"mean": 1.0, "low": 0.5, "high": 2.0}

    rows, metric = {"LQ input": lambda lq, hq: lq}, Features()
    again = restore_and_score(evaluated.benchmark, None, rows, {"set": metric}, tmp_path, batch_size=2, seed=3)
    lq, hq = evaluated.stacked()
    features, reference, seed = metric.seen[0]
    assert torch.equal(features, as_saved(lq).flatten(1)[:, :7]) and torch.equal(reference, hq.flatten(1)[:, :7])
    assert seed == 3
    assert again.summary()["LQ input"] == {"set": {"mean": 1.0, "low": 0.5, "high": 2.0}}

    # an image that is not finite fails in every metric, of single images and of the set
    rows = {"broken": lambda lq, hq: lq.masked_fill((lq == lq[-1:]).flatten(1).all(1)[:, None, None, None], np.nan)}
    metrics = METRICS | {"set": metric}
    for _ in range(2):  # measured, and read from the log
        broken = restore_and_score(evaluated.benchmark, None, rows, metrics, tmp_path / "broken", batch_size=2)
        assert np.isnan(broken.scores["broken"]["mean_red"]).tolist() == [False, True, False, True, True]
        assert {name: one["failed"] for name, one in broken.summary()["broken"].items()} == dict.fromkeys(metrics, 3)
        assert torch.equal(metric.seen[-1][0], features[[0, 2]])


def test_methods_that_need_the_truth_are_refused_where_there_is_none(evaluated, tmp_path):
    class Wild:
        name = "wild"

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return Pair("a", torch.zeros(3, 32, 32), None)

    with pytest.raises(InputError, match=r"methods .* wild .*\['codec\(HQ\)'\]"):
        restore_and_score(Wild(), None, standard_methods(evaluated.restorer, {}), {}, tmp_path)
