"""Evaluate: `python scripts/eval.py benchmark=NAME`. Restores a set, scores it, prints and writes the table."""

import shlex
import sys
from pathlib import Path

from command import run

COMMAND = shlex.join(["python", "scripts/eval.py", *sys.argv[1:]])
MINI_CONTROLS = {"no adapter": "mini/none", "conv adapter": "mini/conv"}


def run_name_of(model_folder: str) -> str:
    """Return a name for results from a model's folder: its parts, without what leads out of a folder."""
    return "-".join(part for part in Path(model_folder).parts if part not in ("/", ".", "..")) or "model"


def build_benchmark(cfg, resolution: int):
    """Return the test set that `cfg.benchmark` names, at `resolution`."""
    from hydra.utils import instantiate

    from lafr.errors import InputError

    settings = {"resolution": resolution}
    if "degradation" not in cfg.benchmark.build and not cfg.benchmark.build._target_.endswith("PairedBenchmark"):
        settings["degradation"] = instantiate(cfg.degradation, _convert_="all")
    build = instantiate(cfg.benchmark.build, _convert_="all", _partial_=True)
    benchmark = build(**settings)  # given to `instantiate`, the degradation, a dataclass, would become a dict
    if cfg.benchmark.get("resolution", resolution) != resolution:
        raise InputError(
            f"benchmark {benchmark.name} is {cfg.benchmark.resolution} px, model.folder={cfg.model.folder} restores "
            f"{resolution} px; give model.folder=FOLDER of a model trained at {cfg.benchmark.resolution} px"
        )
    if getattr(benchmark, "hq", True) is None:
        raise InputError(f"benchmark {benchmark.name} has no ground truth; no-reference metrics are not here yet")
    return benchmark


def build_metrics(cfg) -> tuple[dict, dict[str, str]]:
    """Return the metrics of `cfg.metrics`, and why each of the others cannot be measured here."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    from lafr.errors import InputError

    metrics, not_measured = {}, {}
    for name, metric in cfg.metrics.items():
        try:
            metrics[name] = instantiate(metric, _convert_="all")
        except InstantiationException as error:
            if not isinstance(error.__cause__, InputError):
                raise
            not_measured[name] = str(error.__cause__)
    return metrics, not_measured


def main(cfg) -> None:
    """Restore and score the benchmark with the model and its controls."""
    from omegaconf import OmegaConf

    from lafr.devices import choose_device
    from lafr.evaluation import evaluate, standard_rows, trained_on
    from lafr.models.restorer import Restorer
    from lafr.results import print_table, provenance, write_json

    device = choose_device(cfg.device)
    restorer = Restorer.from_pretrained(cfg.model.folder).to(device)
    controls = cfg.controls if cfg.controls is not None else MINI_CONTROLS if cfg.model.folder == "mini" else {}
    benchmark = build_benchmark(cfg, restorer.resolution)
    metrics, not_measured = build_metrics(cfg)

    others = {name: Restorer.from_pretrained(f).to(device) for name, f in controls.items()}
    rows = standard_rows(restorer, others)
    run_name = cfg.run_name or run_name_of(cfg.model.folder)
    folder = Path(cfg.output or f"runs/eval/{run_name}/{benchmark.name}")
    result = evaluate(benchmark, restorer, rows, metrics, folder, batch_size=cfg.batch_size, device=device)
    record = {
        "benchmark": benchmark.name,
        "images": len(result.stems),
        "rows": result.summary(cfg.seed),
        "trained_on": trained_on({**others, "LAFR": restorer}, metrics),
        "not_measured": not_measured,
        "latents": result.latents,
        **provenance(COMMAND, cfg.seed),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    write_json(record, folder / "result.json")
    print_table(record)
    print(f"pictures  {folder / 'faces.png'} (LQ | restored | HQ: best, median, worst), {folder / 'restored'}")
    print(f"numbers   {folder / 'result.json'}, {folder / 'scores.csv'}")
    if cfg.publish:
        published = Path("results") / str(run_name) / f"{benchmark.name}.json"
        write_json(record, published)
        published.with_suffix(".csv").write_bytes((folder / "scores.csv").read_bytes())
        print(f"published {published}")


if __name__ == "__main__":
    run(main, "eval")
