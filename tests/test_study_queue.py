"""The studies' queue: shared stages once, nothing trained twice, nothing stale, a budget, a test set used once."""

import copy
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import load_file
from training_script import overrides, run_script

from lafr.errors import InputError
from lafr.studies.plan import distinct_steps, planned
from lafr.studies.queue import CLOCK, TRAINED, Clock, RunFailed, trained_chain, work_through
from lafr.studies.record import OnceOnly, is_scored, note_problems, record_path

ROOT = Path(__file__).resolve().parents[1]
STAGES = {"codebook": {"max_steps": 3}, "alignment": {"max_steps": 2}, "restoration": {"max_steps": 2}}
CONFIG = {
    "seed": 0,
    "run_name": "x",
    "run_dir": "runs/x",
    "trainer": {"log_every": 10, "mixed_precision": "no"},
    "model": {"build": {"timestep": 200, "adapter": {"_target_": "a.Codebook", "num_codes": 16}}},
    "data": {"num_images": None},
    "stage": {name: {"max_steps": 9, "objective": {"loss": {"weights": {"mse": 1}}}} for name in STAGES},
}


def settings(arguments):
    """What scripts/train.py would compose, in miniature: key=value by dots; names of adapters are known."""
    config = copy.deepcopy(CONFIG)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "adapter" and value != "conv":
            raise InputError(f"no adapter {value}")
        if key == "stages":
            config["stages"] = value
            continue
        node = config
        *path, last = key.split(".")
        for part in path:
            node = node[part]
        node[last] = {"_target_": "a.Loaded"} if value.startswith("{") else value
    return config


def run_of(row, changes, seed=0, folder="steps", stages=STAGES, study="one"):
    return planned(study, row, seed, stages, changes, [], settings, folder)


class Trainer:
    """Notes what it is asked to train, and leaves what a trained step leaves."""

    def __init__(self):
        self.trained = []

    def __call__(self, step, folder, seconds, lock):
        self.trained.append(step.name)
        (folder / TRAINED).parent.mkdir(parents=True)
        (folder / TRAINED).write_text("{}")


ROWS = {
    "hard": {},
    "t50": {"restoration": ["model.build.timestep=50"]},
    "few": {"restoration": ["data.num_images=6"]},
    "large": {"codebook": ["model.build.adapter.num_codes=64"]},
    "none": {"codebook": "skip", "alignment": "skip"},
}


def test_a_stage_that_rows_have_in_common_is_trained_exactly_once_even_side_by_side(tmp_path):
    runs = [run_of(row, changes, folder=tmp_path) for row, changes in ROWS.items()]
    train = Trainer()
    outcome = work_through(runs, lambda run: False, lambda run: trained_chain(run, tmp_path, train, 60),
                           Clock(tmp_path / "queue.json"), 1e6, 60, jobs=3, tick_seconds=0.05)  # fmt: skip
    assert not outcome.failed and len(outcome.done) == 5
    assert sorted(train.trained) == sorted(distinct_steps(runs))  # each once
    stages = [name.partition("_")[0] for name in train.trained]
    # hard, t50 and few have codebook and alignment in common; none starts with restoration
    assert {stage: stages.count(stage) for stage in STAGES} == {"codebook": 2, "alignment": 2, "restoration": 5}


def test_a_step_is_named_by_every_setting_that_decides_it_and_by_no_other():
    keys = {row: [step.key for step in run_of(row, changes).steps] for row, changes in ROWS.items()}
    assert keys["t50"][:2] == keys["few"][:2] == keys["hard"][:2]
    assert len({keys[row][-1] for row in ROWS}) == 5
    # a changed setting early in the chain changes all that follows; so does the seed; so do the steps
    for other in (
        keys["large"],
        [step.key for step in run_of("hard", {}, seed=1).steps],
        [step.key for step in run_of("hard", {}, stages={**STAGES, "codebook": {"max_steps": 4}}).steps],
    ):
        assert not set(other) & set(keys["hard"])
    later = run_of("hard", {}, stages={**STAGES, "restoration": {"max_steps": 4}})
    assert [step.key for step in later.steps][:2] == keys["hard"][:2] and later.key != keys["hard"][2]
    assert [step.key for step in run_of("hard", {"codebook": ["trainer.log_every=1"]}).steps] == keys["hard"]
    assert [step.key for step in run_of("hard", {}, folder="elsewhere").steps] == keys["hard"]


def test_a_record_of_other_settings_does_not_count_as_done(tmp_path):
    run = run_of("hard", {})
    path = record_path(tmp_path, run)
    path.parent.mkdir()
    path.write_text(json.dumps({"key": run.key, "scores": {"val": {}}}))
    assert is_scored(tmp_path, run, "val") and not is_scored(tmp_path, run, "london")
    assert not is_scored(tmp_path, run_of("hard", {"restoration": ["model.build.timestep=50"]}), "val")


def killed_queue(folder, ready):
    """A queue whose trainer is a process of its own, killed while that one works."""
    import subprocess

    def train(step, own, seconds, lock):
        own.mkdir(parents=True, exist_ok=True)
        made = f"import time, pathlib; time.sleep(1); p = pathlib.Path(r'{own / TRAINED}'); p.parent.mkdir(); " \
               f"p.write_text('{{}}'); open(r'{folder / 'trained'}', 'a').write('{step.name} ')"  # fmt: skip
        process = subprocess.Popen([sys.executable, "-c", made], pass_fds=[lock])
        ready.set()
        process.wait()

    trained_chain(run_of("hard", {}, folder=folder), folder, train, 60)


def test_what_a_killed_queue_left_running_is_waited_for_and_not_trained_twice(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    queue = context.Process(target=killed_queue, args=(tmp_path, ready))
    queue.start()
    assert ready.wait(20)
    os.kill(queue.pid, signal.SIGKILL)
    queue.join()
    run, train = run_of("hard", {}, folder=tmp_path), Trainer()
    found = trained_chain(run, tmp_path, train, 60)  # the next queue
    names = [step.name for step in run.steps]
    assert (tmp_path / "trained").read_text().split() == found == names[:1]
    assert train.trained == names[1:]
    assert trained_chain(run, tmp_path, train, 60) == names and train.trained == names[1:]


def test_a_run_is_started_only_while_its_whole_time_fits_the_budget_and_what_is_left_is_named(tmp_path):
    runs = [run_of("hard", {}, seed=seed) for seed in range(5)]
    spent = {"seconds": 0}

    class Told(Clock):
        seconds = property(lambda self: spent["seconds"])

    def do(run):
        spent["seconds"] += 100

    told = Told(tmp_path / "queue.json")
    outcome = work_through(runs, lambda run: run.seed == 0, do, told, budget_seconds=350, run_seconds=120)
    assert outcome.before == ["one/hard, seed 0"]
    assert outcome.done == [f"one/hard, seed {seed}" for seed in (1, 2, 3)]  # at 300 s another 120 s would not fit
    assert outcome.left == ["one/hard, seed 4"]
    assert json.loads((tmp_path / "queue.json").read_text())["wall_seconds"] == 300
    assert Clock(tmp_path / "queue.json").seconds >= 300  # the next attempt goes on counting


def test_a_stopped_queue_starts_no_run_and_leaves_the_one_that_it_interrupted_unfinished_not_failed(tmp_path):
    runs, stop = [run_of("hard", {}, seed=seed) for seed in range(3)], threading.Event()

    def do(run):
        if run.seed == 1:
            stop.set()
            raise RunFailed("stopped")

    outcome = work_through(runs, lambda run: False, do, Clock(tmp_path / "queue.json"), 1e6, 60, stop=stop)
    assert outcome.done == ["one/hard, seed 0"] and not outcome.failed
    assert outcome.left == ["one/hard, seed 1", "one/hard, seed 2"]


def test_a_run_over_its_minutes_is_stopped_before_the_next_stage(tmp_path):
    run, train = run_of("hard", {}, folder=tmp_path), Trainer()
    trained_chain(run, tmp_path, train, 60)
    last = tmp_path / run.steps[-1].name
    (last / TRAINED).unlink()
    for step in run.steps[:2]:
        (tmp_path / step.name / CLOCK).write_text('{"wall_seconds": 31}')
    with pytest.raises(RunFailed, match=r"1 minutes are over before restoration is done; raise run_minutes"):
        trained_chain(run, tmp_path, train, 60)


def test_a_row_that_does_not_compose_or_fails_is_named_and_the_others_go_on(tmp_path):
    missing = run_of("new", {"codebook": ["adapter=not_there_yet"]}, folder=tmp_path)
    runs = [missing, run_of("hard", {}, folder=tmp_path), run_of("t50", ROWS["t50"], folder=tmp_path)]

    def do(run):
        if run.row == "hard":
            raise RunFailed("the loss is not finite")

    outcome = work_through(runs, lambda run: False, do, Clock(tmp_path / "queue.json"), 1e6, 1)
    assert outcome.failed == {
        "one/new, seed 0": "no adapter not_there_yet",
        "one/hard, seed 0": "the loss is not finite",
    }
    assert outcome.done == ["one/t50, seed 0"]
    note_problems(tmp_path, outcome.failed, outcome.done)
    note_problems(tmp_path, {}, ["one/hard, seed 0"])
    assert json.loads((tmp_path / "not_run.json").read_text()) == {"one/new, seed 0": "no adapter not_there_yet"}


def test_a_test_set_is_used_once_and_a_stopped_use_goes_on_with_the_same_models_alone(tmp_path):
    first, second = run_of("hard", {}), run_of("t50", ROWS["t50"])
    with pytest.raises(InputError, match="no finished run"):
        OnceOnly(tmp_path, "london").begin([])
    assert OnceOnly(tmp_path, "london").begin([first]) == [first.name]
    # stopped: a run that was finished since is not let in, nor the same row trained otherwise
    assert OnceOnly(tmp_path, "london").begin([first, second]) == [first.name]
    assert OnceOnly(tmp_path, "london").begin([run_of("hard", ROWS["t50"])]) == []
    OnceOnly(tmp_path, "london").finish()
    with pytest.raises(InputError, match="used once"):
        OnceOnly(tmp_path, "london").begin([first, second])
    assert OnceOnly(tmp_path, "london").begin([first, second], force=True) == [first.name, second.name]
    assert json.loads((tmp_path / "london_once.json").read_text())["uses"] == 2


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import study_steps

    yield study_steps
    for name in ("study_steps", "studies", "study", "command"):
        sys.modules.pop(name, None)


def test_the_real_studies_share_codebook_and_alignment_and_no_stage_sees_the_test_set(steps):
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        cfg = compose("study")
        images = steps.plan(cfg, steps.load_study("images"), seed=0)
        (default,) = steps.plan(cfg, steps.load_study("codebook"), row="n1024", seed=0)
        (hard,) = steps.plan(cfg, steps.load_study("alignment"), row="hard", seed=0)
        config = steps.compose_training([*hard.steps[-1].arguments, "run_name=x"])
        test_set = compose("study", ["benchmark=london"]).benchmark
    assert (cfg.benchmark.name, test_set.name) == ("val", "london")
    keys = {run.row: [step.key for step in run.steps] for run in images}
    assert keys["all"] == [step.key for step in default.steps] == [step.key for step in hard.steps]  # trained once
    assert [step.stage for step in hard.steps] == ["codebook", "alignment", "restoration"]
    assert all(of[:2] == keys["all"][:2] for of in keys.values())
    assert len({of[2] for of in keys.values()}) == len(keys) == 6
    # what a later stage starts from is the adapter of the stage before, and nothing of the default one's settings
    adapter = config["model"]["build"]["adapter"]
    assert adapter.keys() == {"_target_", "folder", "name"} and hard.steps[1].key in adapter["folder"]
    assert config["data"]["folders"] == ["congress", "omi"] and config["data"]["validation_list"] == "val.txt"


def test_a_test_set_is_not_used_for_some_of_the_runs_nor_is_a_study_chosen_on_it(steps, tmp_path):
    import studies
    import study

    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        given = ["benchmark=london", f"data.root={tmp_path}", f"results={tmp_path / 'results'}"]
        some = [compose("study", ["final=true", *given, part]) for part in ("study=cost", "row=hard", "seed=0")]
        chosen = compose("study", [*given, "study=cost"])
        none = compose("study", given[2:])
    for cfg in some:
        with pytest.raises(InputError, match="leave out study, row and seed"):
            studies.score_once(cfg, {}, [])
    with pytest.raises(InputError, match="choose one with study=NAME"):
        study.main(none)
    with pytest.raises(InputError, match="chosen on val"):
        study.main(chosen)
    with pytest.raises(InputError, match="a test set needs final=true"):
        studies.train_and_choose(chosen, {}, [])
    assert not (tmp_path / "results").exists()


def test_every_study_names_rows_it_has_and_ends_in_the_stage_that_all_share(steps):
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        base = OmegaConf.to_container(compose("study"))
    assert set(base["studies"]) == set(steps.study_names())
    for name in steps.study_names():
        study = steps.load_study(name)
        assert study["name"] == name and study["question"].endswith("?")
        assert (ROOT / "configs" / "study" / f"{name}.yaml").read_text().startswith(f"# {study['question']} ")
        named = {row for pair in study["compare"] for row in pair} | set(study["titles"])
        assert named <= set(study["rows"]), name
        for changes in study["rows"].values():
            assert set(changes or {}) <= set(base["stages"]) and (changes or {}).get("restoration") != "skip"


def test_a_command_over_its_seconds_or_of_a_stopped_queue_ends_and_a_failed_one_says_why(steps, tmp_path):
    code = "import time; print('working', flush=True); time.sleep(60)"
    started = time.monotonic()
    with (tmp_path / "lock").open("w") as lock:
        with pytest.raises(RunFailed, match="raise run_minutes"):
            steps.watched(["-c", code], tmp_path / "log", Clock(tmp_path / CLOCK), 1.0, 1, lock.fileno())
        assert time.monotonic() - started < 20
        assert json.loads((tmp_path / CLOCK).read_text())["wall_seconds"] >= 1
        with pytest.raises(RunFailed, match="nothing left to say"):
            steps.watched(["-c", "raise SystemExit('nothing left to say')"], tmp_path / "log", Clock(tmp_path / CLOCK),
                          9, 1, lock.fileno())  # fmt: skip
        steps.STOP.set()
        started = time.monotonic()
        with pytest.raises(RunFailed, match="run it again to go on"):
            steps.watched(["-c", code], tmp_path / "log", Clock(tmp_path / CLOCK), 60, 1, lock.fileno())
        assert time.monotonic() - started < 20


@pytest.mark.parametrize(("jobs", "share"), [(1, 7), (2, 4)])  # of 8 cores, where the record says 7 threads
def test_a_lost_model_is_trained_again_as_its_record_says_and_what_changed_is_noted(
    jobs, share, steps, monkeypatch, tmp_path
):
    run = run_of("hard", {}, folder=tmp_path / "work" / "steps")
    noted = {"stage": "restoration", "validation": {"psnr_rgb": 24.0}, "wall_seconds": 9.0}
    record = {"key": run.key, "threads": 7, "run_minutes": 6, "scores": {"val": {}}, "latents": {}, "trained_on": [],
              "steps": [{**noted, "stage": stage} for stage in STAGES], "wall_seconds": {"training": 27.0},
              "machine": "one that is gone"}  # fmt: skip
    path = record_path(tmp_path, run)
    path.parent.mkdir()
    path.write_text(json.dumps(record))
    cfg = OmegaConf.create({"results": str(tmp_path), "work": str(tmp_path / "work"), "run_minutes": 6, "jobs": jobs})
    threads = []
    monkeypatch.setattr(os, "cpu_count", lambda: 8)

    def train(cfg, step, folder, seconds, lock, **given):
        threads.append(given["threads"])
        (folder / TRAINED).parent.mkdir(parents=True)
        (folder / TRAINED).write_text("{}")
        final = folder / step.stage / "final"
        final.mkdir(parents=True)
        psnr = 24.0 if step.stage != "restoration" else 24.5
        (final / "summary.json").write_text(
            json.dumps({"steps": 2, "seconds": 5.0, "batch_size": 1, "validation": {"psnr_rgb": psnr}})
        )

    monkeypatch.setattr(steps, "train", train)
    monkeypatch.setattr(steps, "score", lambda *_: {"images": 1, "rows": {"LAFR": {}}, "trained_on": {}, "latents": {}})
    assert steps.is_lost(cfg, run)
    steps.score_once_more(cfg, {}, run, "london")
    steps.score_once_more(cfg, {}, run, "london")  # nothing is trained a third time
    after = json.loads(path.read_text())
    assert threads == [share] * 3 and not steps.is_lost(cfg, run)
    assert after["trained_again"] == {
        "london": {"restoration": {"noted": {"psnr_rgb": 24.0}, "again": {"psnr_rgb": 24.5}}}
    }
    assert after["machine"] == "one that is gone" and after["scored_later"]["london"]["machine"] != after["machine"]
    assert (
        after["steps"] == record["steps"] and after["wall_seconds"]["training"] == 27.0 and "london" in after["scores"]
    )


@pytest.mark.slow
def test_a_chain_cut_into_steps_ends_in_the_weights_of_one_uncut_training_bit_for_bit(
    steps, workers, base_folder, face_folder, tmp_path
):
    common = [a for a in overrides(base_folder, face_folder, steps=2) if not a.startswith(("run_name=", "adapter."))]
    small = {"codebook": [a for a in overrides(base_folder, face_folder, 2) if a.startswith("adapter.")]}
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        run = planned(
            "one", "hard", 3, {stage: {} for stage in STAGES}, small, common, steps.compose_training, tmp_path
        )

    def trained(arguments, folder):
        process = workers.Process(target=run_script, args=([*arguments, "run_name=x", f"run_dir={folder}"],))
        process.start()
        process.join()
        assert process.exitcode == 0

    trained_chain(run, tmp_path, lambda step, own, seconds, lock: trained(step.arguments, own), 600)
    trained([*common, *small["codebook"], "seed=3"], tmp_path / "uncut")
    for part in ("adapter/diffusion_pytorch_model.safetensors", "denoiser/pytorch_lora_weights.safetensors"):
        cut, uncut = (load_file(tmp_path / folder / "model" / part) for folder in (run.steps[-1].name, "uncut"))
        assert cut.keys() == uncut.keys() and all(torch.equal(cut[name], uncut[name]) for name in cut), part
