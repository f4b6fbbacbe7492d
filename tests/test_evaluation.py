"""One evaluation of a tiny model: what the files say is what the scores say."""

import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lafr.data.benchmarks import SyntheticBenchmark
from lafr.data.faces import Faces
from lafr.evaluation import best_median_worst, evaluate, standard_rows
from lafr.images import as_saved, read_image
from lafr.metrics.codebook import CodeUse
from lafr.metrics.fidelity import PerceptualDistance, psnr_rgb
from lafr.models.restorer import Restorer


@dataclass
class Evaluated:
    """What one run of `evaluate` was given, returned and wrote."""

    benchmark: SyntheticBenchmark
    restorer: Restorer
    result: object
    folder: object

    def stacked(self) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [self.benchmark[i] for i in range(len(self.benchmark))]
        return torch.stack([pair.lq for pair in pairs]), torch.stack([pair.hq for pair in pairs])

    def lines(self) -> list[dict[str, str]]:
        with (self.folder / "scores.csv").open() as file:
            return list(csv.DictReader(file))


METRICS = {"psnr_rgb": psnr_rgb, "mean_red": lambda image, hq: image[:, 0].mean((1, 2))}


@pytest.fixture
def evaluated(restorer, face_folder, degradation, tmp_path):
    benchmark = SyntheticBenchmark("tiny", Faces(sorted(face_folder.glob("*.png"))[:5], 32), degradation)
    rows = standard_rows(restorer.eval(), {"brighter": lambda lq: lq + 0.1})
    metrics = METRICS | {"st_lpips_alex": PerceptualDistance("alex")}
    result = evaluate(benchmark, restorer, rows, metrics, tmp_path, batch_size=2)
    return Evaluated(benchmark, restorer, result, tmp_path)


def test_every_row_is_the_image_that_its_name_says(evaluated):
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


def test_the_saved_pictures_score_what_the_table_says(evaluated):
    _, hq = evaluated.stacked()
    saved = torch.stack([read_image(evaluated.folder / "restored" / f"{s}.png") for s in evaluated.result.stems])
    assert psnr_rgb(saved, hq).tolist() == evaluated.result.scores["LAFR"]["psnr_rgb"].tolist()


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


def test_the_picture_ranks_by_the_perceptual_distance(evaluated):
    distance = evaluated.result.scores["LAFR"]["st_lpips_alex"]
    order = np.argsort(distance)
    picture = read_image(evaluated.folder / "faces.png")
    assert picture.shape == (3, 32, 3 * 96 + 16)  # five faces: one each, LQ | restored | HQ
    lq, hq = evaluated.stacked()
    for column, face in enumerate([order[0], order[2], order[4]]):
        left = column * (96 + 8)
        assert torch.equal(picture[:, :, left : left + 32], lq[face])
        assert torch.equal(picture[:, :, left + 64 : left + 96], hq[face])


def test_the_number_of_images_in_a_batch_changes_no_score(evaluated, tmp_path):
    rows = standard_rows(evaluated.restorer, {})
    again = evaluate(evaluated.benchmark, evaluated.restorer, rows, METRICS, tmp_path / "again", batch_size=5)
    assert np.allclose(again.scores["LAFR"]["psnr_rgb"], evaluated.result.scores["LAFR"]["psnr_rgb"], atol=1e-2)
    assert again.stems == evaluated.result.stems


def test_best_median_and_worst_are_the_ends_and_the_middle_of_the_order():
    triples = [torch.full((3, 3, 1, 1), float(i)) for i in range(9)]
    distance = np.array([4, 8, 0, 5, 1, 7, 3, 6, 2.0])  # face 2 is best, face 1 worst
    picture = best_median_worst(triples, distance, each=2)
    columns = [picture[0, :, left].tolist() for left in (0, 3 + 8, 2 * (3 + 8))]
    assert columns == [[2, 4], [6, 0], [5, 1]]
