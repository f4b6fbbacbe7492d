"""What is seen: `python scripts/study_seen.py [seed=0]`. A map of latents, and sheets of faces, after study 1.

The map's numbers go to results/studies/seen.json; the sheets, which show people, stay in the git-ignored work folder.
"""

from pathlib import Path

from command import run

FACES, FAILURES = 10, 5


def main(cfg) -> None:
    """Map the latents of study 1's LAFR; put the same ten faces, and its failures, behind each of the study's rows."""
    from study_steps import load_study, plan, steps_folder

    from lafr.errors import InputError
    from lafr.results import provenance, write_json
    from lafr.studies.record import is_scored

    study, seed = load_study("alignment"), cfg.seed or 0
    scores = Path(cfg.work) / "scores"
    done = [one for one in plan(cfg, study, seed=seed) if is_scored(cfg.results, one, "val")]
    runs = [one for one in done if (scores / one.key / "val" / "pictures").is_dir()]
    ours = next((one for one in runs if one.row == "hard"), None)
    if ours is None:
        raise InputError(f"the pictures of study 1's row hard, seed {seed}, are not in {scores}; try another seed, or "
                         "remove its record and run python scripts/study.py study=alignment")  # fmt: skip
    if lost := [one.name for one in done if one not in runs]:
        print(f"left out, their pictures are not in {scores}: {', '.join(lost)}")
    folders = {study["titles"][one.row]: scores / one.key / "val" for one in runs}
    target = Path(cfg.work) / "seen"
    chosen = sheets(folders, scores / ours.key / "val", target)
    record = mapped(steps_folder(cfg) / ours.steps[-1].name / "model", cfg, seed)
    record |= {"benchmark": "val", "seed": seed, **provenance(f"python scripts/study_seen.py seed={seed}", seed)}
    write_json(record, Path(cfg.results) / "seen.json")
    print(f"numbers   {Path(cfg.results) / 'seen.json'}\nsheets    {', '.join(map(str, chosen))}")


def mapped(model: Path, cfg, seed: int) -> dict:
    """Return the latents of the validation faces in the plane of z_hq's first two principal components."""
    import torch
    from eval import build_benchmark
    from hydra import compose
    from tqdm import tqdm

    from lafr.devices import choose_device
    from lafr.models.restorer import Restorer
    from lafr.studies.latents import in_plane_of

    device = choose_device(cfg.device)
    restorer = Restorer.from_pretrained(model).to(device)
    evaluation = compose("eval", ["benchmark=val", f"data.root={cfg.faces}"])
    benchmark = build_benchmark(evaluation, restorer.resolution)
    found: dict[str, list] = {name: [] for name in ("z_lq", "z_aligned", "z_restored", "z_hq")}
    with torch.no_grad():
        for i in tqdm(range(len(benchmark)), desc="latents", unit="face", dynamic_ncols=True):
            pair = benchmark[i]
            latents = restorer.latents(pair.lq[None].to(device))
            z_hq = restorer.codec.encode(pair.hq[None].to(device))
            for name in found:
                z = z_hq if name == "z_hq" else getattr(latents, name)
                found[name].append(z.flatten().cpu().numpy())
    return {"images": len(benchmark), **in_plane_of("z_hq", found)}


def sheets(folders: dict[str, Path], ours: Path, target: Path) -> list[Path]:
    """Write two sheets, a column a face, a line a row: faces at even ranks of a metric, and our worst failures."""
    from lafr.studies.sheets import evenly_ranked, read_scores, sheet, worst

    ranked = read_scores(ours / "scores.csv", "LAFR", "st_lpips_vgg")
    identity = read_scores(ours / "scores.csv", "LAFR", "identity_cos_sface")
    lines = {"LQ input": ours / "pictures" / "LQ_input"}
    lines |= {name: folder / "pictures" / "LAFR" for name, folder in folders.items()}
    lines |= {"HQ": ours / "pictures" / "HQ"}
    return [
        sheet(lines, evenly_ranked(ranked, FACES), target / "ten_faces.png"),
        sheet(lines, worst(identity, FAILURES, lowest=True), target / "failures.png"),
    ]


if __name__ == "__main__":
    run(main, "study")
