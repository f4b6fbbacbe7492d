"""Restore and score a benchmark batch by batch: resumable, by one process or several."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lafr.data.benchmarks import Benchmark, Pair
from lafr.errors import InputError
from lafr.evaluation.latents import LatentNumbers
from lafr.evaluation.methods import Batch, Method, input_method, method_of, truth_method
from lafr.evaluation.plan import HQ, LQ, MODEL
from lafr.evaluation.progress import Processes, ProgressLog
from lafr.evaluation.restored import RestoredImages
from lafr.evaluation.scoring import Scoring
from lafr.evaluation.summary import Evaluation, best_median_worst, ranking_metric, write_scores
from lafr.images import write_image
from lafr.metrics.registry import Metric, is_set_metric
from lafr.models.restorer import Restorer
from lafr.storage import remove_temporaries

WORK = "work"  # folder of the logs and features, inside an evaluation's


@torch.no_grad()
def restore_and_score(
    benchmark: Benchmark,
    restorer: Restorer | None,
    methods: Mapping[str, Method | Callable[[Tensor, Tensor | None], Tensor]],
    metrics: Mapping[str, Metric],
    folder: str | Path,
    shown: str = MODEL,
    batch_size: int = 8,
    device: torch.device | str = "cpu",
    seed: int = 0,
    fidelity: float = 0.0,
    processes: Processes | None = None,
    work: str | Path | None = None,
) -> Evaluation | None:
    """Restore and score every image of `benchmark`; run again, a stopped run resumes.

    Writes each method's images (LQ and the ground truth too) as `work/pictures/METHOD/STEM.png`, and into `folder`
    `scores.csv` and `faces.png`: best, median and worst, LQ | restored | HQ. Metrics see what the PNG files hold. Only
    one batch of images is held in memory. Returns the scores in the main process, None in the others.

    Args:
        benchmark: the test set; either none of its pairs has a ground truth, or all have.
        restorer: whose latents are measured; None for none.
        methods: what is compared; a plain function of (lq, hq) is never cached.
        metrics: by name; of each image, or of the set (see `lafr.evaluation.scoring`).
        shown: method on faces.png; no faces.png where it isn't compared.
        batch_size: images restored together. An image may differ by rounding between batch sizes.
        device, seed: to run on, and of set metrics' intervals.
        fidelity: at which latents are measured.
        processes: says which batches are this process's; None for all.
        folder, work: of the numbers; of the images and of what is needed to resume (`folder` when None).
    """
    folder, work, processes = Path(folder), Path(work or folder), processes or Processes()
    log = ProgressLog(work / WORK, processes.index)
    has_truth = benchmark[0].hq is not None
    compared = as_methods(methods, benchmark, has_truth)
    written = input_method() | compared | (truth_method() if has_truth else {})
    images = RestoredImages(written, work / "pictures", log)
    scoring = Scoring(list(compared), metrics, images, work / WORK, device)
    latents = LatentNumbers(restorer, log, fidelity) if restorer is not None else None
    before = load(log, images, scoring, latents)
    if processes.is_main:
        report(log.damaged)
    processes.wait()  # nobody writes before all have read
    groups = groups_of(len(benchmark), batch_size)
    for batch in own_batches(benchmark, groups, device, processes):
        images.make(batch)
        report(images.warnings)
        scoring.measure(batch)
        if latents is not None:
            latents.measure(batch)
    processes.wait()
    if not processes.is_main:
        return None
    after = load(log, images, scoring, latents)
    remove_temporaries(work)  # of killed processes
    result = merged(scoring, [[benchmark.stem(i) for i in group] for group in groups], seed)
    if latents is not None:
        result.latents.update(latents.summary(len(groups), has_truth))
    counted = len(next(iter(result.scores.values())))  # metrics of single images
    result.kept.update(kept(before, after, len(benchmark), len(written), len(compared) * counted))
    write_results(result, images, shown, folder)
    return result


def as_methods(methods: Mapping, benchmark: Benchmark, has_truth: bool) -> dict[str, Method]:
    """Return functions as methods too; raises InputError where one needs a ground truth and there is none."""
    compared = {name: method if isinstance(method, Method) else method_of(method) for name, method in methods.items()}
    if not has_truth and (lost := [name for name, method in compared.items() if method.needs_hq]):
        raise InputError("methods", lost, f"such as need no ground truth, as benchmark {benchmark.name} has none")
    return compared


def groups_of(count: int, batch_size: int) -> list[range]:
    """Return the numbers of the images of each batch."""
    return [range(count)[start : start + batch_size] for start in range(0, count, batch_size)]


def own_batches(
    benchmark: Benchmark, groups: Sequence[range], device: torch.device | str, processes: Processes
) -> Iterator[Batch]:
    """Return this process's batches one after another, on a device; the main process shows its progress.

    The next batch is read in a thread of its own while this one is restored and scored.
    """
    own = list(enumerate(groups))[processes.index :: processes.count]
    quiet = not processes.is_main
    with ThreadPoolExecutor(1) as reader:
        reading = [reader.submit(pairs_of, benchmark, group) for _, group in own[:1]]
        for place, (number, _) in enumerate(
            tqdm(own, desc=benchmark.name, unit="batch", dynamic_ncols=True, disable=quiet)
        ):
            pairs = reading.pop().result()
            reading = [reader.submit(pairs_of, benchmark, group) for _, group in own[place + 1 : place + 2]]
            hq = None if pairs[0].hq is None else torch.stack([pair.hq for pair in pairs]).to(device)
            yield Batch(number, pairs, torch.stack([pair.lq for pair in pairs]).to(device), hq)


def pairs_of(benchmark: Benchmark, group: Sequence[int]) -> list[Pair]:
    """Return the pairs of a batch."""
    with torch.no_grad():  # a thread starts with its own grad mode
        return [benchmark[i] for i in group]


def report(lines: list[str]) -> None:
    """Print warnings above a progress bar, each once."""
    for line in lines:
        tqdm.write(f"warning: {line}", file=sys.stderr)
    lines.clear()


def load(log: ProgressLog, images: RestoredImages, scoring: Scoring, latents: LatentNumbers | None) -> tuple[int, int]:
    """Take in the log of all processes; return how many images and scores it lists."""
    lines = log.lines()
    if latents is not None:
        latents.load(lines)
    return images.load(lines), scoring.load(lines)


def merged(scoring: Scoring, batches: Sequence[list[str]], seed: int) -> Evaluation:
    """Return the scores of all processes, in the order of the benchmark."""
    images, methods, metrics = scoring.images, scoring.methods, scoring.metrics
    of_sets = {name: metric for name, metric in metrics.items() if is_set_metric(metric)}
    of_images = [name for name in metrics if name not in of_sets]
    result = Evaluation(
        stems=[stem for stems in batches for stem in stems],
        scores={},
        folders={method: images.folder / name for method, name in images.folders.items()},
    )
    for method in methods:
        result.scores[method] = {name: scoring.values(method, name, batches) for name in of_images}
        result.of_sets[method] = {n: scoring.of_set(method, n, metric, batches, seed) for n, metric in of_sets.items()}
    return result


def kept(
    before: tuple[int, int], after: tuple[int, int], images: int, methods: int, scores: int
) -> dict[str, tuple[int, int]]:
    """Return how many images and scores were there already, of how many: each new one added to the log's counts.

    Args:
        before: images and scores in the log when the run started.
        after: and at its end.
        images: of the benchmark.
        methods: that write each of them.
        scores: of each of them.
    """
    totals = {"images": images * methods, "scores": images * scores}
    new = [now - then for now, then in zip(after, before, strict=True)]
    return {what: (max(0, total - made), total) for (what, total), made in zip(totals.items(), new, strict=True)}


def write_results(result: Evaluation, images: RestoredImages, method: str, folder: Path) -> None:
    """Write scores.csv and, if a metric ranks the faces of `method`, faces.png: the best, median and worst of them."""
    write_scores(result, folder / "scores.csv")
    if method in result.scores and (ranking := ranking_metric(result.scores[method])) is not None:
        columns = [name for name in (LQ, method, HQ) if name in images.methods]

        def face(index: int) -> list[Tensor]:
            return [images.read(name, [result.stems[index]])[0] for name in columns]

        write_image(best_median_worst(face, ranking[1]), folder / "faces.png")
