"""One evaluation: every batch's pictures, then their scores; merged by the first process in the benchmark's order."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lafr.errors import InputError
from lafr.evaluation.latents import LatentNumbers
from lafr.evaluation.ledger import Ledger, Processes
from lafr.evaluation.pictures import Pictures
from lafr.evaluation.rows import HQ, LQ, SHOWN, Batch, Row, input_row, of_function, truth_row
from lafr.evaluation.scoring import Metric, Scores
from lafr.evaluation.summary import Evaluation, best_median_worst, ranking_metric, write_scores
from lafr.images import write_image
from lafr.metrics.registry import is_set_metric

WORK = "work"  # folder of the ledgers and features, inside an evaluation's


@torch.no_grad()
def evaluate(
    benchmark,
    restorer,
    rows: Mapping[str, Row | Callable[[Tensor, Tensor | None], Tensor]],
    metrics: Mapping[str, Metric],
    folder: str | Path,
    shown: str = SHOWN,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    seed: int = 0,
    fidelity: float = 0.0,
    processes: Processes | None = None,
    work: str | Path | None = None,
) -> Evaluation | None:
    """Restore and score `benchmark`, a sequence of `lafr.data.benchmarks.Pair`; run again, a stopped run goes on.

    Writes pictures of each row (LQ and the ground truth too) into `work/pictures/ROW/STEM.png`, and into `folder`
    `scores.csv` and `faces.png`: best, median and worst of the row `shown`, LQ | restored | HQ. Metrics see what the
    PNG files hold. Only a batch of images is held in memory.

    Args:
        benchmark: the test set; none of its pairs has a ground truth, or all have.
        restorer: whose latents are measured; None for none.
        rows: what is compared; a plain function of (lq, hq) is always asked anew.
        metrics: by name; per image, or of the set (see `lafr.evaluation.scoring`).
        folder: of the numbers.
        shown: row of the picture; no picture where it isn't compared.
        batch_size: images restored together. A picture may differ in rounding between batch sizes.
        device: to run on.
        seed: of set metrics' intervals.
        fidelity: at which latents are measured.
        processes: which batches are this process's; all of them when None.
        work: folder of pictures and of what is needed to go on; `folder` when None.

    Returns:
        the scores, in the first process; None in the others.
    """
    folder, work, processes = Path(folder), Path(work or folder), processes or Processes()
    ledger = Ledger(work / WORK, processes.index)
    has_truth = benchmark[0].hq is not None
    compared = {name: row if isinstance(row, Row) else of_function(row) for name, row in rows.items()}
    if lost := [name for name, row in compared.items() if row.needs_hq and not has_truth]:
        raise InputError(f"rows={lost} need a ground truth and benchmark {benchmark.name} has none; leave them out")
    drawn = input_row() | compared | (truth_row() if has_truth else {})
    pictures = Pictures(drawn, work / "pictures", ledger)
    scores = Scores(list(compared), metrics, pictures, work / WORK, device)
    latents = LatentNumbers(restorer, ledger, fidelity) if restorer is not None else None
    before = take(ledger, pictures, scores, latents)
    processes.wait()  # nobody writes before all have read

    size = min(batch_size, len(benchmark))
    groups = [range(start, min(start + size, len(benchmark))) for start in range(0, len(benchmark), size)]
    mine = list(enumerate(groups))[processes.index :: processes.count]
    for number, group in tqdm(
        mine, desc=benchmark.name, unit="batch", dynamic_ncols=True, disable=not processes.is_main
    ):
        batch = batch_of([benchmark[i] for i in group], number, device)
        pictures.make(batch)
        scores.measure(batch)
        if latents is not None:
            latents.measure(batch)
    processes.wait()
    if not processes.is_main:
        return None

    after = take(ledger, pictures, scores, latents)
    pictures.tidy()
    batches = [[benchmark.stem(i) for i in group] for group in groups]
    single = [name for name, metric in metrics.items() if not is_set_metric(metric)]
    result = Evaluation(
        stems=[stem for stems in batches for stem in stems],
        scores={row: {m: scores.values(row, m, batches) for m in single} for row in compared},
        latents={},
        of_sets={
            row: {m: scores.of_set(row, m, batches, seed) for m in metrics if m not in single} for row in compared
        },
        folders={row: work / "pictures" / name for row, name in pictures.folders.items()},
        kept=kept(before, after, (len(benchmark) * len(drawn), len(benchmark) * len(compared) * len(single))),
    )
    if latents is not None:
        result.latents.update(latents.summary(len(batches), has_truth))
    write_scores(result, folder / "scores.csv")
    if shown in compared:
        write_faces(result, pictures, shown, folder / "faces.png")
    return result


def batch_of(pairs: list, number: int, device: torch.device | str) -> Batch:
    """Return the batch of `pairs`, on a device."""
    hq = None if pairs[0].hq is None else torch.stack([pair.hq for pair in pairs]).to(device)
    return Batch(number, pairs, torch.stack([pair.lq for pair in pairs]).to(device), hq)


def take(ledger: Ledger, pictures: Pictures, scores: Scores, latents: LatentNumbers | None) -> tuple[int, int]:
    """Let each take in what all processes noted; return how many pictures and scores that were."""
    lines = ledger.lines()
    if latents is not None:
        latents.take(lines)
    return pictures.take(lines), scores.take(lines)


def kept(before: tuple[int, int], after: tuple[int, int], whole: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Return how many pictures and scores were there already, of how many: each new one is a new line."""
    return {
        name: (max(0, all_ - (new - old)), all_)
        for name, old, new, all_ in zip(("pictures", "scores"), before, after, whole, strict=True)
    }


class _Shown:
    """The pictures that faces.png shows side by side, read when they are asked for."""

    def __init__(self, pictures: Pictures, row: str, stems: list[str]):
        self.pictures, self.stems = pictures, stems
        self.columns = [name for name in (LQ, row, HQ) if name in pictures.rows]

    def __getitem__(self, index: int) -> list[Tensor]:
        return [self.pictures.read(name, [self.stems[index]])[0] for name in self.columns]


def write_faces(result: Evaluation, pictures: Pictures, row: str, path: Path) -> None:
    """Write the best, median and worst faces of a row, if a metric ranks them."""
    if (ranking := ranking_metric(result.scores[row])) is not None:
        write_image(best_median_worst(_Shown(pictures, row, result.stems), ranking[1]), path)
