"""One study: `python scripts/study.py study=NAME [row=ROW] [seed=SEED]`, or `-m ... row=A,B seed=0,1,2`.

Trains what is missing and scores on the validation list. Resumable: what is trained is not trained again.
"""

from command import run


def main(cfg) -> None:
    """Do the chosen runs one after the other; those that cannot be done are named at the end."""
    from omegaconf import OmegaConf
    from study_steps import do, plan
    from tqdm import tqdm

    from lafr.errors import InputError
    from lafr.studies.queue import RunFailed
    from lafr.studies.record import is_scored, note_problems, record_path

    if cfg.get("study") is None:
        raise InputError("study=null: choose one with study=NAME, or run scripts/studies.py for all of them")
    if cfg.final or cfg.benchmark.name != "val":
        raise InputError(f"benchmark={cfg.benchmark.name}, final={cfg.final}: a study is chosen on val alone; "
                         "scripts/studies.py final=true scores the test set, once")  # fmt: skip
    study = OmegaConf.to_container(cfg.study)
    failed, done = {}, []
    for one in tqdm(plan(cfg, study, cfg.row, cfg.seed), desc=study["name"], unit="run", dynamic_ncols=True):
        try:
            if not is_scored(cfg.results, one, cfg.benchmark.name):
                do(cfg, study, one)
            done.append(one.name)
            tqdm.write(f"{one.name}: {record_path(cfg.results, one)}")
        except RunFailed as problem:
            failed[one.name] = str(problem)
    note_problems(cfg.results, failed, done)
    if failed:
        raise InputError("; ".join(f"{name}: {why}" for name, why in failed.items()))


if __name__ == "__main__":
    run(main, "study")
