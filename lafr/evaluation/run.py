"""Carry out a `Plan`: load the model, the set and the metrics, restore and score."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lafr.data.benchmarks import Benchmark, MissingSetError, PartialBenchmark
from lafr.errors import InputError, setting
from lafr.evaluation.batches import restore_and_score
from lafr.evaluation.cache_keys import key_of_metric, key_of_restorer, require_same_model
from lafr.evaluation.checking import check_set, prepared_filter
from lafr.evaluation.methods import Method, at_fidelity, input_method, output_method, standard_methods
from lafr.evaluation.outputs import match_outputs, side_of
from lafr.evaluation.plan import CEILING, MODEL, Plan
from lafr.evaluation.progress import Processes
from lafr.evaluation.summary import Evaluation, trained_on
from lafr.evaluation.sweep import curve_metrics, name_at
from lafr.metrics.card import Card, card_of
from lafr.metrics.registry import Metric, describe
from lafr.models.restorer import Restorer, model_folder
from lafr.models.saved import Saved
from lafr.provenance import read_training_set


@dataclass(frozen=True)
class Result:
    """What an evaluation found.

    Args:
        scores: of each method and metric.
        cards: metric -> how it was measured.
        not_measured: metric -> why it was not.
        trained_on: method -> the metrics whose networks its model was trained with.
        checked: what was checked of the set, a sentence each.
        axes: metrics of the fidelity-realism curve, where the fidelity was swept.
        name: of the set: the plan's benchmark, or for a trial such as "celeba_test (24 of 3000)".
        side: in pixels, of the images that were scored.
        of: number of images of the whole set.
        filter: with which the set was brought to its size, where its index says so.
        training: method -> what its model was trained on, where that is recorded.
    """

    scores: Evaluation
    cards: dict[str, Card]
    not_measured: dict[str, str]
    trained_on: dict[str, list[str]]
    checked: list[str]
    axes: tuple[str, str] | None
    name: str
    side: int
    of: int
    filter: str | None = None
    training: Mapping[str, dict] = field(default_factory=dict)


class MissingError(InputError):
    """Nothing can be measured on this machine yet: the model, the set or every network of the metrics is missing.

    Args:
        message: what is missing and how to get it.
        not_measured: metric -> why it cannot be measured, where the metrics are what is missing.
    """

    def __init__(self, message: str, remedy: str = "", not_measured: Mapping[str, str] | None = None):
        super().__init__(message, remedy=remedy)
        self.not_measured = dict(not_measured or {})


def evaluate(
    plan: Plan,
    device: torch.device | str = "cpu",
    processes: Processes | None = None,
    notify: Callable[[str | InputError], object] = lambda text: None,
) -> Result | None:
    """Restore and score what `plan` says, into `plan.work`; run again, a stopped run resumes.

    Nothing is written before all of the plan is known to be possible. Returns None in all processes but the main one.
    `notify` gets, before any image is restored, what the user should know of the run, text or a warning in the form of
    an error; in the main process alone.
    """
    processes = processes or Processes()
    whole, side = open_set(plan)
    found = check_set(whole, plan.severity, notify if processes.is_main else None)
    has_truth = getattr(whole, "hq", True) is not None
    benchmark = PartialBenchmark(whole, plan.limit) if plan.limit and plan.limit < len(whole) else whole
    metrics, not_measured = announced_metrics(plan, side, has_truth, notify if processes.is_main else lambda text: None)
    if plan.truth_cache:
        cache_truth(metrics, Path(plan.truth_cache), device)
    axes = curve_metrics(list(metrics), *plan.curve) if plan.sweep else None
    restorer = load_model(plan, device) if plan.needs_model else None
    names = [name for name in plan.methods if has_truth or name != CEILING]
    controls = {n: Restorer.from_pretrained(f).to(device) for n, f in plan.controls.items() if n in names}
    methods = build_methods(plan, names, restorer, controls, whole, side)
    if restorer:
        require_same_model(plan.work, restorer, write=processes.is_main)
    scores = restore_and_score(
        benchmark,
        restorer,
        methods,
        metrics,
        plan.folder,
        plan.shown,
        plan.batch_size,
        device,
        seed=plan.seed,
        fidelity=plan.fidelity,
        processes=processes,
        work=plan.work,
    )
    if scores is None:
        return None
    models = controls | ({MODEL: restorer} if restorer else {})
    compared = {name: model for name, model in models.items() if name in names}
    cards = {name: card_of(name, metric) for name, metric in metrics.items()}
    return Result(
        scores,
        cards,
        not_measured,
        trained_on(compared, metrics),
        found,
        axes,
        benchmark.name,
        side,
        len(whole),
        prepared_filter(whole),
        training_sets(plan, list(compared)),
    )


def training_sets(plan: Plan, names: Sequence[str]) -> dict[str, dict]:
    """Return method -> what its model was trained on, of those that record it."""
    folders = {MODEL: plan.model, **plan.controls}
    found = {name: read_training_set(model_folder(folders[name])) for name in names}
    return {name: record for name, record in found.items() if record}


def announced_metrics(
    plan: Plan, side: int, has_truth: bool, notify: Callable[[str | InputError], object]
) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return what `build_metrics` does; `notify` gets what cannot be measured."""
    try:
        metrics, not_measured = build_metrics(plan, side, has_truth)
    except MissingError as error:
        notify(listed(error.not_measured, len(plan.metrics)))
        raise
    if not_measured:
        notify(listed(not_measured, len(plan.metrics)))
    return metrics, not_measured


def load_model(plan: Plan, device: torch.device | str) -> Restorer:
    """Return the plan's model."""
    return Restorer.from_pretrained(plan.model, plan.base, decoder=plan.decoder).to(device)


def open_set(plan: Plan) -> tuple[Benchmark, int]:
    """Return the test set and the side in pixels of its images, by the model's index where a model is needed.

    Raises MissingError that names model and set when both are missing, and InputError when they differ in size. The
    model is loaded afterwards: it takes longer than to say what is missing.
    """
    missing = []
    if plan.needs_model and plan.lacks_model:
        missing.append(f"there is no model in {plan.model!r}: {plan.model_remedy}")
        side = plan.side or 0  # a benchmark that names a model has one
    elif plan.needs_model:
        side = Saved.read(model_folder(plan.model)).resolution
    else:
        side = plan.side or side_of(next(iter(plan.outputs.values())))
    if plan.side not in (None, side):
        raise InputError(
            f"benchmark {plan.benchmark} is {plan.side} px and the model {plan.model!r} restores {side} px",
            remedy=f"give {setting('Restorer.folder')} of a model trained at {plan.side} px",
        )
    try:
        benchmark = plan.build_benchmark(side)
    except MissingSetError as error:
        missing.append(error.args[0])
    if missing:
        raise MissingError("; and ".join(missing))
    return benchmark, side


def build_metrics(plan: Plan, side: int, has_truth: bool) -> tuple[dict[str, Metric], dict[str, str]]:
    """Return the metrics that can be measured on images of `side` pixels, and why each of the others cannot.

    Raises MissingError when none can.
    """
    metrics: dict[str, Metric] = {}
    not_measured: dict[str, str] = {}
    for name, build in plan.metrics.items():
        try:
            metric = build()
        except InputError as error:  # a network or statistics that is not on this machine
            not_measured[name] = str(error)
            continue
        record = describe(name, metric)
        if record.min_side > side:  # NIQE at 128 px
            not_measured[name] = f"undefined below {record.min_side} px, the images are {side} px"
        elif not has_truth and record.needs_reference:
            not_measured[name] = "the set has no ground truth"
        else:
            metrics[name] = metric
    if not metrics:
        (reason, names), *others = by_reason(not_measured).items()
        more = f", and {len(others)} reasons more, as listed" if others else ""
        raise MissingError(
            f"nothing can be measured here ({', '.join(names)}: {reason}{more})",
            f"choose other {setting('metrics')} or another {setting('protocol')}",
            not_measured,
        )
    return metrics, not_measured


def by_reason(not_measured: Mapping[str, str]) -> dict[str, list[str]]:
    """Return why -> metrics, as several often lack the same file."""
    reasons: dict[str, list[str]] = {}
    for name, reason in not_measured.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def listed(not_measured: Mapping[str, str], asked: int) -> str:
    """Return the list of what cannot be measured, a line for each reason, with how to get it."""
    lines = [f"  {', '.join(names)}: {reason}" for reason, names in by_reason(not_measured).items()]
    return "\n".join([f"not measured here, {len(not_measured)} of {asked} metrics:", *lines])


def cache_truth(metrics: Mapping[str, Metric], folder: Path, device: torch.device | str) -> None:
    """Cache ground-truth network outputs in `folder`, one subfolder for each metric and cache key."""
    for name, metric in metrics.items():
        if hasattr(metric, "keep_truth_in"):
            metric.keep_truth_in(folder / f"{name}_{key_of_metric(name, metric, device)[:16]}")


def build_methods(
    plan: Plan,
    names: Sequence[str],
    restorer: Restorer | None,
    controls: Mapping[str, Restorer],
    benchmark: Benchmark,
    side: int,
) -> dict[str, Method]:
    """Return the methods called `names`, then LAFR at each other fidelity of the sweep."""
    stems = [benchmark.stem(i) for i in range(len(benchmark))]
    known = standard_methods(restorer, controls, plan.fidelity) if restorer else input_method()
    for name, folder in plan.outputs.items():
        known[name] = output_method(match_outputs(folder, stems, side), side)
    methods = {name: known[name] for name in names}
    others = [f for f in plan.sweep if f != plan.fidelity or MODEL not in names]
    if restorer is None or not others:
        return methods
    key = key_of_restorer(restorer)
    return methods | {name_at(f): at_fidelity(restorer, f, key) for f in others}
