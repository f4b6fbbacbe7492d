"""The loss study: `python scripts/loss_study.py benchmark=NAME`. Trains every row for every seed, scores them all.

Resumable: what is trained is not trained again, and a run that was stopped goes on from its last checkpoint.
"""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from command import run
from eval import build_benchmark, build_metrics

COMMAND = shlex.join(["python", "scripts/loss_study.py", *sys.argv[1:]])


def train_rows(cfg) -> dict[str, str]:
    """Train what is not trained yet, `cfg.jobs` at a time; return "row, seed" -> model folder."""
    from lafr.errors import InputError

    runs = {f"{row}, seed {seed}": (row, seed) for seed in cfg.seeds for row in cfg.rows}
    folders = {name: f"runs/loss_study/{row}_{seed}" for name, (row, seed) in runs.items()}

    def train(name: str) -> int:
        row, seed = runs[name]
        if Path(folders[name], "model").is_dir():
            return 0
        weights = [f"stage.multilevel.objective.loss.weights.{term}={w}" for term, w in cfg.rows[row].items()]
        arguments = ["+experiment=mini_multilevel", f"run_name=loss_study/{row}_{seed}", f"seed={seed}",
                     f"data.root={cfg.faces}", *weights, *cfg.overrides]  # fmt: skip
        Path(folders[name]).mkdir(parents=True, exist_ok=True)
        with Path(folders[name], "output.log").open("a") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // cfg.jobs))}
            done = subprocess.run([sys.executable, "scripts/train.py", *arguments], stdout=log, stderr=log,
                                  env=environment, check=False)  # fmt: skip
        print(
            f"trained {name}" if done.returncode == 0 else f"{name} failed: see {folders[name]}/output.log", flush=True
        )
        return done.returncode

    with ThreadPoolExecutor(cfg.jobs) as pool:
        if any(list(pool.map(train, runs))):
            raise InputError("a run failed; run the same command again to go on")
    return {name: f"{folder}/model" for name, folder in folders.items()}


def by_severity(scores: dict[str, dict], by: str = "psnr_rgb") -> dict[str, dict[str, dict[str, float]]]:
    """Return row -> metric -> mean over each third of the images, from the least to the most degraded input.

    Severity is the PSNR of the LQ input: not what is compared, so that no row gains by the choice.
    """
    import numpy as np

    thirds = np.array_split(np.argsort(-scores["LQ input"][by], kind="stable"), 3)
    names = ("mild", "middle", "severe")
    return {
        row: {m: {name: float(np.nanmean(v[i])) for name, i in zip(names, thirds, strict=True)} for m, v in own.items()}
        for row, own in scores.items()
    }


def main(cfg) -> None:
    """Train, score, write `results/loss_study/BENCHMARK.json` and `.csv`."""
    from omegaconf import OmegaConf

    from lafr.devices import choose_device
    from lafr.evaluation import evaluate, trained_on
    from lafr.models.restorer import Restorer
    from lafr.results import provenance, write_json
    from lafr.tables import print_table

    folders = {"start": cfg.start} | train_rows(cfg)
    device = choose_device(cfg.device)
    models = {name: Restorer.from_pretrained(folder).to(device) for name, folder in folders.items()}
    start = models["start"]
    benchmark = build_benchmark(cfg, start.resolution)
    metrics, not_measured = build_metrics(cfg)
    rows = {"LQ input": lambda lq, hq: lq, "codec(LQ)": lambda lq, hq: start.codec.reconstruct(lq)}
    rows |= {"adapter only": lambda lq, hq: start.codec.decode(start.adapter(start.codec.encode(lq)))}
    rows |= {name: lambda lq, hq, model=model: model(lq) for name, model in models.items()}
    rows |= {"adapter(HQ)": lambda lq, hq: start.codec.decode(start.adapter(start.codec.encode(hq)))}
    rows |= {"codec(HQ)": lambda lq, hq: start.codec.reconstruct(hq)}
    folder = Path("runs/loss_study/scores") / benchmark.name
    shown = f"{list(cfg.rows)[-1]}, seed {cfg.seeds[0]}"
    result = evaluate(benchmark, start, rows, metrics, folder, shown=shown, batch_size=cfg.batch_size, device=device)
    record = {
        "benchmark": benchmark.name,
        "images": len(result.stems),
        "rows": result.summary(cfg.seed),
        "by_severity": by_severity(result.scores),
        "trained_on": trained_on(models, metrics),
        "not_measured": not_measured,
        "latents": {},
        **provenance(COMMAND, cfg.seed),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    print_table(record)
    target = Path(cfg.output) / f"{benchmark.name}.json"
    write_json(record, target)
    target.with_suffix(".csv").write_bytes((folder / "scores.csv").read_bytes())
    print(f"pictures  {folder / 'faces.png'}\nnumbers   {target}, {target.with_suffix('.csv')}")


if __name__ == "__main__":
    run(main, "loss_study")
