"""Evaluate: `python scripts/eval.py benchmark=NAME`. Restores a set, scores it, prints and writes the table.

`outputs=FOLDER` scores what another method restored. Run again, a stopped run goes on; `accelerate launch` shares the
work among processes.
"""

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from lafr.commands.launch import run

COMMAND = shlex.join(["python", "scripts/eval.py", *sys.argv[1:]])
MINI_CONTROLS = {"no adapter": "mini/none", "conv adapter": "mini/conv"}
METRIC_FILES = Path(__file__).resolve().parents[2] / "configs" / "metrics"


def run_name_of(model_folder: str) -> str:
    """Return a name for results from a model's folder: its parts, without what leads out of a folder."""
    return "-".join(part for part in Path(model_folder).parts if part not in ("/", ".", "..")) or "model"


def build_benchmark(cfg, resolution: int):
    """Return the test set that `cfg.benchmark` names, at `resolution`."""
    from hydra.utils import instantiate

    from lafr.errors import InputError

    settings = {"resolution": resolution}
    if "degradation" not in cfg.benchmark.build and not cfg.benchmark.build._target_.endswith(PAIRED):
        settings["degradation"] = instantiate(cfg.degradation, _convert_="all")
    build = instantiate(cfg.benchmark.build, _convert_="all", _partial_=True)
    benchmark = build(**settings)  # given to `instantiate`, the degradation, a dataclass, would become a dict
    if cfg.benchmark.get("resolution", resolution) != resolution:
        raise InputError(
            f"benchmark {benchmark.name} is {cfg.benchmark.resolution} px, model.folder={cfg.model.folder} restores "
            f"{resolution} px; give model.folder=FOLDER of a model trained at {cfg.benchmark.resolution} px"
        )
    return benchmark


PAIRED = ("PairedBenchmark", "pair_benchmark")  # what takes no degradation: the pictures are there


def build_metrics(cfg) -> tuple[dict, dict[str, str]]:
    """Return the metrics of `cfg.metrics`, or of the protocol, and why each of the others cannot be measured here."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from lafr.errors import InputError

    metrics, not_measured = {}, {}
    for name, metric in metric_definitions(cfg).items():
        try:
            metrics[name] = instantiate(metric, _convert_="all")
        except InstantiationException as error:
            if not isinstance(error.__cause__, InputError):
                raise
            not_measured[name] = str(error.__cause__)
    return metrics, not_measured


def metric_definitions(cfg) -> Mapping:
    """Return name -> definition: those of `cfg.metrics`; a protocol names its own, from any file of configs/metrics."""
    from omegaconf import OmegaConf

    from lafr.errors import InputError

    if not cfg.get("protocol"):
        return cfg.metrics
    known = {name: made for path in sorted(METRIC_FILES.glob("*.yaml")) for name, made in OmegaConf.load(path).items()}
    names = cfg.protocol.metrics
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"protocol {cfg.protocol.name} names metrics that configs/metrics does not define: {unknown}")
    return {name: known[name] for name in names}


def without_truth(metrics: dict, not_measured: dict[str, str]) -> dict:
    """Return the metrics that need no ground truth; say of each of the others why it is not measured."""
    from lafr.metrics import describe

    needing = [name for name, metric in metrics.items() if describe(name, metric).needs_reference]
    not_measured |= dict.fromkeys(needing, "the set has no ground truth")
    return {name: metric for name, metric in metrics.items() if name not in needing}


def without_too_small(metrics: dict, not_measured: dict[str, str], side: int) -> dict:
    """Return the metrics that are defined at `side` pixels (NIQE is not at 128); say it of each of the others."""
    from lafr.metrics import describe

    least_sides = {name: describe(name, metric).min_side for name, metric in metrics.items()}
    small = {name: least for name, least in least_sides.items() if least > side}
    not_measured |= {name: f"undefined below {least} px, the images are {side} px" for name, least in small.items()}
    return {name: metric for name, metric in metrics.items() if name not in small}


def keep_truth(metrics: Mapping, folder: Path, device) -> None:
    """Let metrics that can keep what they see in the ground truth in `folder`, each in its own by all it hangs on."""
    from lafr.evaluation.cache_keys import of_metric

    for name, metric in metrics.items():
        if hasattr(metric, "keep_truth_in"):
            metric.keep_truth_in(folder / f"{name}_{of_metric(name, metric, device)[:16]}")


def other_outputs(cfg) -> dict[str, Path]:
    """Return row -> folder of `cfg.outputs`: a folder, a list of them or a mapping."""
    from omegaconf import OmegaConf

    from lafr.evaluation.outputs import folders_of

    given = cfg.outputs
    if isinstance(given, str) and given[:1] in "[{" and not Path(given).exists():
        given = OmegaConf.create(given)  # the command line's paths come quoted, lists and mappings too
    return folders_of(OmegaConf.to_container(given) if OmegaConf.is_config(given) else given) if given else {}


def chosen_rows(cfg, controls: Mapping, outputs: Mapping[str, Path]) -> list[str]:
    """Return the rows to compare: `cfg.rows`, or others' outputs beside the input, or all."""
    from lafr.errors import InputError

    known = ["LQ input", "codec(LQ)", "adapter only", *controls, "LAFR", *outputs, "codec(HQ)"]
    if twice := sorted({row for row in known if known.count(row) > 1}):
        raise InputError(f"two rows are called {twice[0]!r}; name them otherwise: outputs={{NAME: FOLDER, ...}}")
    if cfg.rows is None:
        return ["LQ input", *outputs] if outputs else known
    if unknown := [row for row in cfg.rows if row not in known]:
        raise InputError(f"rows={unknown} are unknown; this run knows {', '.join(known)}")
    if not cfg.rows:
        raise InputError(f"rows=[] compares nothing; choose some of {', '.join(known)}")
    return [row for row in known if row in cfg.rows]


def build_rows(cfg, names, restorer, models: Mapping, outputs: Mapping[str, Path], benchmark, side: int) -> dict:
    """Return row -> how its pictures are made, in the order of `names`, and LAFR's at each fidelity of the sweep."""
    from lafr.evaluation import standard_rows
    from lafr.evaluation.cache_keys import of_restorer
    from lafr.evaluation.outputs import matched
    from lafr.evaluation.rows import at_fidelity, input_row, output_row
    from lafr.evaluation.sweep import row_name

    stems = [benchmark.stem(i) for i in range(len(benchmark))]
    rows = standard_rows(restorer, models, cfg.fidelity) if restorer else input_row()
    rows |= {name: output_row(matched(folder, stems, side), side) for name, folder in outputs.items()}
    rows = {name: rows[name] for name in names}
    others = [f for f in cfg.sweep or () if f != cfg.fidelity or "LAFR" not in names]
    made_by = of_restorer(restorer) if others else None
    return rows | {row_name(f): at_fidelity(restorer, f, made_by) for f in others}


def shown_row(names: list[str], outputs: Mapping[str, Path]) -> str:
    """Return the row that faces.png shows: LAFR, or others' first outputs, or the last row."""
    return next((name for name in ("LAFR", *outputs) if name in names), names[-1])


def default_name(cfg, outputs: Mapping[str, Path], restorer) -> str:
    """Return what results are called: by the model and its fidelity where it runs, else by others' outputs."""
    if restorer is None:
        return "+".join(outputs)
    name = run_name_of(cfg.model.folder)
    return f"{name}-fidelity_{cfg.fidelity:g}" if cfg.fidelity else name


def start(cfg):
    """Return this process's share of the work and its device."""
    from lafr.commands.devices import choose_device
    from lafr.evaluation import Processes

    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Processes(), choose_device(cfg.device)
    from datetime import timedelta

    from accelerate import Accelerator, InitProcessGroupKwargs

    patient = InitProcessGroupKwargs(timeout=timedelta(days=7))  # one process may have much left when others are done
    state = Accelerator(kwargs_handlers=[patient])
    device = state.device if cfg.device == "auto" else choose_device(cfg.device)
    return Processes(state.process_index, state.num_processes, state.wait_for_everyone), device


def main(cfg) -> None:
    """Restore and score the benchmark with the model and its controls, or score what others restored."""
    from lafr.commands.evaluate_results import finish, groups_of, protocol_name, record_of
    from lafr.errors import InputError
    from lafr.evaluation import evaluate
    from lafr.evaluation.cache_keys import require_same_model
    from lafr.evaluation.checking import checked
    from lafr.evaluation.outputs import side_of
    from lafr.evaluation.sweep import curve_metrics
    from lafr.models.restorer import Restorer, require_fidelity

    for value in (cfg.fidelity, *(cfg.sweep or ())):
        require_fidelity(value)
    groups, outputs = groups_of(cfg), other_outputs(cfg)
    controls = cfg.controls if cfg.controls is not None else MINI_CONTROLS if cfg.model.folder == "mini" else {}
    names = chosen_rows(cfg, controls, outputs)
    processes, device = start(cfg)
    restorer = None
    if cfg.sweep or set(names) - {"LQ input", *outputs} or not outputs:
        restorer = Restorer.from_pretrained(cfg.model.folder).to(device)
        if any((cfg.fidelity, *(cfg.sweep or ()))):
            restorer.denoiser.require_lora()
    side = restorer.resolution if restorer else cfg.benchmark.get("resolution") or side_of(next(iter(outputs.values())))
    benchmark = build_benchmark(cfg, side)
    found = checked(benchmark, cfg.benchmark.get("severity"))
    metrics, not_measured = build_metrics(cfg)
    metrics = without_too_small(metrics, not_measured, side)
    if getattr(benchmark, "hq", True) is None:
        metrics = without_truth(metrics, not_measured)
        names = [name for name in names if name != "codec(HQ)"]
    if not metrics:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in not_measured.items())
        raise InputError(f"nothing can be measured here ({reasons}); choose metrics=NAME or protocol=NAME")
    if cfg.truth_cache:
        keep_truth(metrics, Path(cfg.truth_cache), device)
    axes = curve_metrics(list(metrics), cfg.curve.x, cfg.curve.y) if cfg.sweep else None

    models = {name: Restorer.from_pretrained(f).to(device) for name, f in controls.items() if name in names}
    rows = build_rows(cfg, names, restorer, models, outputs, benchmark, side)
    run_name = cfg.run_name or default_name(cfg, outputs, restorer)
    work = Path(cfg.output or f"runs/eval/{run_name}/{benchmark.name}")
    folder = work / (protocol_name(cfg) or "")
    if restorer:
        require_same_model(work, restorer, processes)
    result = evaluate(
        benchmark, restorer, rows, metrics, folder, shown_row(names, outputs), cfg.batch_size, device,
        seed=cfg.seed, fidelity=cfg.fidelity, processes=processes, work=work,
    )  # fmt: skip
    if result is not None:  # in the first process
        models |= {"LAFR": restorer} if restorer else {}
        record = record_of(cfg, COMMAND, result, metrics, not_measured, models, groups, folder)
        finish(cfg, record, result, folder, found, f"results/{run_name}/{benchmark.name}", axes)


def command() -> None:
    """Run the command line."""
    sys.argv[1:] = ["explain=true" if argument == "--explain" else argument for argument in sys.argv[1:]]
    run(main, "eval")


if __name__ == "__main__":
    command()
