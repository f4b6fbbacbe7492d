"""What a study's run does: plan it with Hydra, train its steps with scripts/train.py, score it with scripts/eval.py."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

from command import one_line, quote_paths

from lafr.errors import InputError
from lafr.results import provenance, write_json
from lafr.studies.plan import Run, Step, planned
from lafr.studies.queue import CLOCK, TRAINED, Clock, RunFailed, read_clock, sole_owner, trained_chain
from lafr.studies.record import REFERENCES, changed_validations, read_record, record_path

ROOT = Path(__file__).resolve().parent.parent
STOP = threading.Event()  # set: what runs is stopped, to go on another time
COMPOSING = threading.Lock()  # Hydra's state is global


def study_names() -> list[str]:
    """Return the names of all studies."""
    return sorted(path.stem for path in (ROOT / "configs" / "study").glob("*.yaml"))


def load_study(name: str) -> dict:
    """Return the settings of a study; raises InputError for a name that is none."""
    from omegaconf import OmegaConf

    if name not in study_names():
        raise InputError(f"study {name!r} is not known; known are {', '.join(study_names())}")
    return OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "study" / f"{name}.yaml"))


def compose_training(arguments) -> dict:
    """Return the resolved configuration of scripts/train.py; raises InputError when it does not compose.

    The same arguments are composed once: most steps are asked for by many runs.
    """
    return _composed(tuple(arguments))


@cache
def _composed(arguments: tuple[str, ...]) -> dict:
    from hydra import compose
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with COMPOSING:
            return OmegaConf.to_container(compose("train", quote_paths(list(arguments))), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(one_line(error)) from None


def plan(cfg, study: Mapping, row: str | None = None, seed: int | None = None) -> list[Run]:
    """Return a study's runs, seed by seed, so that a budget that ends early leaves whole tables."""
    if row is not None and str(row) not in study["rows"]:
        raise InputError(f"row {row!r} is not in study {study['name']}; it has {', '.join(study['rows'])}")
    stages = {name: {**settings, **study["stages"].get(name, {})} for name, settings in cfg.stages.items()}
    rows = study["rows"] if row is None else {str(row): study["rows"][str(row)]}
    common = [f"data.root={cfg.faces}", *cfg.common]
    return [
        planned(study["name"], str(name), s, stages, changes or {}, common, compose_training, steps_folder(cfg))
        for s in (study["seeds"] if seed is None else [seed])
        for name, changes in rows.items()
    ]


def steps_folder(cfg) -> Path:
    """Return the folder of the steps' folders."""
    return Path(cfg.work) / "steps"


def watched(command: list[str], log: Path, clock: Clock, seconds: float, threads: int, lock: int) -> None:
    """Run a command within seconds, its output in `log`, the lock held as long as it lives; raises RunFailed."""
    log.parent.mkdir(parents=True, exist_ok=True)
    end = clock.seconds + seconds
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, *command], stdout=output, stderr=output,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)}, pass_fds=[lock],
        )  # fmt: skip
    try:
        while process.poll() is None:
            try:
                process.wait(2)
            except subprocess.TimeoutExpired:
                clock.tick()
            if STOP.is_set():
                raise RunFailed("stopped; run it again to go on")
            if clock.seconds > end and process.poll() is None:
                raise RunFailed(f"stopped when its minutes were over, {seconds / 60:.1f} of them left for "
                                f"{log.parent.name}; raise run_minutes and run it again")  # fmt: skip
    finally:  # a stopped queue leaves no training behind
        if process.poll() is None:
            process.terminate()
            process.wait()
        clock.tick()
    if process.returncode:
        raise RunFailed(f"{last_line(log)} ({log})")


def last_line(log: Path) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it ended without a word"


def threads_of(cfg) -> int:
    """Return how many threads each of the jobs gets."""
    return max(1, (os.cpu_count() or 1) // cfg.jobs)


def train(cfg, step: Step, folder: Path, seconds: float, lock: int, threads: int | None = None) -> None:
    """Train a step with scripts/train.py; run again, it goes on."""
    command = ["scripts/train.py", *step.arguments, f"run_name={step.name}", f"run_dir={folder.resolve()}"]
    watched(command, folder / "output.log", Clock(folder / CLOCK), seconds, threads or threads_of(cfg), lock)


def score(cfg, run: Run, benchmark: str) -> dict:
    """Score a trained run; return its record. Pictures stay in the work folder."""
    model = steps_folder(cfg) / run.steps[-1].name / "model"
    return evaluated(cfg, str(model.resolve()), Path(cfg.work) / "scores" / run.key / benchmark, benchmark, ["LAFR"])


def evaluated(cfg, model: str, folder: Path, benchmark: str, rows: list[str]) -> dict:
    """Score a model's rows with scripts/eval.py; return its record."""
    seconds = 10 * 60 * cfg.run_minutes  # only what hangs is stopped
    command = ["scripts/eval.py", f"benchmark={benchmark}", f"model.folder={model}",
               f"data.root={cfg.data.root or cfg.faces}", f"output={folder.resolve()}", f"rows={rows}", "report=false",
               f"truth_cache={(Path(cfg.work) / 'truth').resolve()}", f"batch_size={cfg.batch_size}",
               f"device={cfg.device}", *cfg.scoring]  # fmt: skip
    clock, result = folder / CLOCK, folder / "result.json"
    with sole_owner(folder.parent / f".{benchmark}.lock") as lock:
        before = read_clock(clock) if result.is_file() else 0.0
        if before:  # scored to the end: what is kept takes no time now, what changed takes all of it anew
            clock.unlink()
        watched(command, folder / "output.log", Clock(clock), seconds, threads_of(cfg), lock)
        write_json({"wall_seconds": max(before, read_clock(clock))}, clock)
        return json.loads(result.read_text())


def note_references(cfg, benchmark: str) -> None:
    """Write what every row stands between, the input and the codec's ceiling, where it is not known yet."""
    from lafr.evaluation.rows import CEILING, LQ

    path = Path(cfg.results) / REFERENCES
    known = json.loads(path.read_text()) if path.is_file() else {}
    if benchmark not in known:
        folder = Path(cfg.work) / "scores" / "references" / benchmark
        rows = [LQ, CEILING]
        result = evaluated(cfg, "mini", folder, benchmark, rows)
        command = shlex.join(
            ["python", "scripts/eval.py", f"benchmark={benchmark}", "data.root=FOLDER", f"rows={json.dumps(rows)}"]
        )
        write_json(known | {benchmark: {"rows": result["rows"], **provenance(command, 0)}}, path)


def do(cfg, study: Mapping, run: Run) -> None:
    """Train what is missing of a run, within its minutes, and score it on the validation list; raises RunFailed."""
    if run.problem is not None:
        raise RunFailed(run.problem)
    shared = trained_chain(run, steps_folder(cfg), partial(train, cfg), 60 * cfg.run_minutes)
    result = score(cfg, run, "val")
    note(cfg, run, described(cfg, study, run, shared), "val", result, study)


def score_once_more(cfg, study: Mapping, run: Run, benchmark: str) -> None:
    """Score a finished run on another set. A model that is lost is trained again, with the same settings and seed.

    On another processor that gives other weights; where its stages then validate otherwise, the record says how.
    """
    record = read_record(cfg.results, run)
    # Rounding depends on threads, but with more than a job's share of the cores every step is several times slower.
    again = partial(train, cfg, threads=min(record["threads"], threads_of(cfg)))
    trained_chain(run, steps_folder(cfg), again, 60 * max(cfg.run_minutes, record["run_minutes"]))
    result = score(cfg, run, benchmark)
    if changed := changed_validations(record, run, steps_folder(cfg)):
        record["trained_again"] = {**record.get("trained_again", {}), benchmark: changed}
    command = f"python scripts/studies.py final=true benchmark={benchmark} data.root=FOLDER"
    record["scored_later"] = {**record.get("scored_later", {}), benchmark: provenance(command, run.seed)}
    note(cfg, run, record, benchmark, result, study)


def is_lost(cfg, run: Run) -> bool:
    """Return whether a run's model is not in the work folder (any more)."""
    return not (steps_folder(cfg) / run.steps[-1].name / TRAINED).is_file()


def trained_seconds(cfg, run: Run) -> float:
    """Return the wall-clock seconds of a run's steps, shared ones included."""
    return sum(read_clock(steps_folder(cfg) / step.name / CLOCK) for step in run.steps)


def note(cfg, run: Run, record: dict, benchmark: str, result: dict, study: Mapping) -> None:
    """Write a run's record with the scores of a benchmark."""
    record = {**record, "trained_on": result["trained_on"].get("LAFR", []), "metrics": result.get("metrics", {})}
    record["scores"] = {**record["scores"], benchmark: {"images": result["images"], **result["rows"]["LAFR"]}}
    if run.row not in study.get("own_codec", ()):
        record["latents"] = {**record["latents"], benchmark: result["latents"]}
    seconds = read_clock(Path(cfg.work) / "scores" / run.key / benchmark / CLOCK)
    record["wall_seconds"] = {**record["wall_seconds"], benchmark: seconds}
    write_json(record, record_path(cfg.results, run))


def described(cfg, study: Mapping, run: Run, shared: list[str]) -> dict:
    """Return what a run is and what its training said of itself."""
    from lafr.devices import choose_device
    from lafr.studies.record import step_summary, trained_values

    steps = [step_summary(steps_folder(cfg) / step.name, step, step.name in shared) for step in run.steps]
    command = ["python", "scripts/study.py", f"study={run.study}", f"row={run.row}", f"seed={run.seed}"]
    return {
        "study": run.study,
        "row": run.row,
        "seed": run.seed,
        "key": run.key,
        "changes": study["rows"][run.row] or {},
        "device": str(choose_device("auto")),  # where Accelerate trains
        "threads": threads_of(cfg),
        "run_minutes": cfg.run_minutes,
        "steps": steps,
        "trained_values": trained_values(steps_folder(cfg) / run.steps[-1].name / "model", steps),
        "wall_seconds": {"training": round(trained_seconds(cfg, run), 1)},
        "scores": {},
        "latents": {},
        **provenance(shlex.join(command), run.seed),
    }
