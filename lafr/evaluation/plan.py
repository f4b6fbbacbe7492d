"""What one evaluation does, as values: a command reads its configuration into a `Plan`, and nothing else reads it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lafr.data.benchmarks import Benchmark
from lafr.errors import InputError, require_whole, setting
from lafr.models.restorer import require_fidelity

LQ, HQ, MODEL, CEILING = "LQ input", "HQ", "LAFR", "codec(HQ)"
BEFORE_CONTROLS = (LQ, "codec(LQ)", "adapter only")


@dataclass(frozen=True)
class Plan:
    """One evaluation: what is restored, how it is measured and where the results go.

    Args:
        benchmark: name of the test set.
        build_benchmark: maps the images' side in pixels to the set, a `lafr.data.benchmarks.Benchmark`.
        metrics: name -> function that builds the metric, or raises InputError where it cannot be measured here.
        methods: names of those to compare, see `chosen_methods`.
        model: "mini", or the folder of a trained model.
        model_remedy: how to get that model, for the error when there is none.
        base: of that model, where it is not where the model says.
        decoder: of that model: "base", "tiny" or a folder with a tiny one; as it was saved when None.
        controls: name -> folder of another model, scored next to it.
        outputs: name -> folder of images that another method restored.
        fidelity: of LAFR: 0 as trained, 1 nearest the input.
        sweep: fidelities of the fidelity-realism curve.
        curve: its two metrics; None for the usual ones.
        side: of the set's images in pixels, where it has only one size.
        severity: "severe" or "mild", which the set's pairs must be; None for no check.
        limit: number of images to score, evenly spaced, for a trial; None for all.
        protocol: whose metrics these are.
        groups: CSV of the images' groups.
        seed: of the bootstrap intervals and of set metrics.
        batch_size: images restored together.
        truth_cache: folder for the networks' outputs on the ground truth, used again by the next run.
        run_name: of the results; by the model or the outputs when None.
        output: folder of the results; `runs/eval/RUN_NAME/BENCHMARK` when None.
        report: whether to write report.html.
        explain: whether to print how protocols differ.
        publish: whether to copy the numbers to `results/`.
        device: to run on: "auto", "cpu", "cuda" or "mps".
        command: that was given.
        config: to be recorded with the numbers.
    """

    benchmark: str
    build_benchmark: Callable[[int], Benchmark]
    metrics: Mapping[str, Callable[[], Callable]]
    methods: Sequence[str]
    model: str = "mini"
    model_remedy: str = ""
    base: str | None = None
    decoder: str | None = None
    controls: Mapping[str, str] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    fidelity: float = 0.0
    sweep: Sequence[float] = ()
    curve: tuple[str | None, str | None] = (None, None)
    side: int | None = None
    severity: str | None = None
    limit: int | None = None
    protocol: str | None = None
    groups: str | None = None
    seed: int = 0
    batch_size: int = 8
    truth_cache: str | None = None
    run_name: str | None = None
    output: str | None = None
    report: bool = True
    explain: bool = False
    publish: bool = False
    device: str = "auto"
    command: str = ""
    config: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_whole(1, batch_size=self.batch_size)
        require_whole(0, seed=self.seed)  # NumPy's generators take no others
        for fidelity in (self.fidelity, *self.sweep):
            require_fidelity(fidelity)
        if self.limit is not None and (not isinstance(self.limit, int) or self.limit < 1):
            raise InputError("limit", self.limit, "a whole number, 1 or more, or None for the whole set")
        if self.limit is not None and self.publish:
            raise InputError("publish", True, f"False for a trial ({setting('limit', self.limit)})")
        if self.groups is not None and not Path(self.groups).is_file():
            raise InputError("groups", self.groups, "None or an existing CSV with a line for each image")

    @property
    def needs_model(self) -> bool:
        """Whether the model restores anything, not only other methods' outputs are scored."""
        return bool(self.sweep or not self.outputs or set(self.methods) - {LQ, *self.outputs})

    @property
    def lacks_model(self) -> bool:
        """Whether the folder of the benchmark's own model isn't there."""
        return bool(self.model_remedy) and not Path(self.model).is_dir()

    @property
    def name(self) -> str:
        """What the results are called: by the model and its fidelity where it runs, else by the other outputs."""
        if self.run_name:
            return self.run_name
        if not self.needs_model:
            return "+".join(self.outputs)
        name = name_of_model(self.model)
        name += f"-{Path(self.decoder).name}" if self.decoder not in (None, "base") else ""
        return f"{name}-fidelity_{self.fidelity:g}" if self.fidelity else name

    @property
    def work(self) -> Path:
        """Folder of the restored images and of what is needed to resume."""
        part = f"_limit_{self.limit}" if self.limit else ""
        return Path(self.output or f"runs/eval/{self.name}/{self.benchmark}{part}")

    @property
    def folder(self) -> Path:
        """Folder of the numbers: each protocol has its own inside `work`, as the same images serve all of them."""
        return self.work / (self.protocol or "")

    @property
    def shown(self) -> str:
        """The method that faces.png shows: LAFR, or the first of the other outputs, or the last one compared."""
        return next((name for name in (MODEL, *self.outputs) if name in self.methods), self.methods[-1])


def chosen_methods(
    asked: Collection[str] | None, controls: Collection[str], outputs: Collection[str]
) -> tuple[str, ...]:
    """Return the methods to compare in a table's order; raises InputError for unknown names and for two alike.

    None asks for all, or for the input and the other outputs where there are any.
    """
    known = [*BEFORE_CONTROLS, *controls, MODEL, *outputs, CEILING]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise InputError(f"two methods are named {twice[0]!r}; rename one: {setting('outputs')}={{NAME: FOLDER, ...}}")
    if asked is None:
        return (LQ, *outputs) if outputs else tuple(known)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise InputError("methods", unknown or list(asked), f"some of {', '.join(known)}")
    return tuple(name for name in known if name in asked)


def name_of_model(folder: str) -> str:
    """Return a name for results from a model's folder: its parts, without those that lead out of a folder."""
    return "-".join(part for part in Path(folder).parts if part not in ("/", ".", "..")) or "model"
