"""The gate of the miniature: thresholds on one evaluation, and pairs for a blind comparison."""

from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from lafr.commands.devices import choose_device
from lafr.commands.evaluate import plan_from_config
from lafr.commands.launch import command_line, composed
from lafr.errors import InputError
from lafr.evaluation import markdown
from lafr.evaluation.plan import LQ, MODEL
from lafr.evaluation.run import evaluate
from lafr.miniature.gate import (
    EYE_IMAGES,
    EYE_WINS,
    Scores,
    blind_pairs,
    by_severity,
    measured_on_both,
    measures,
    require_votes,
    thirds,
    wins,
)


def gate(cfg: DictConfig) -> dict:
    """Evaluate the model, write the pairs, and return the lines of the gate."""
    votes = require_votes(str(cfg.votes or ""))  # before minutes of evaluation
    evaluation = composed("eval", f"benchmark={cfg.set}", f"seed={cfg.seed}", "run_name=gate", "report=false")
    evaluation.model.folder, evaluation.data.root = cfg.model.folder, cfg.data.root
    evaluation.controls, evaluation.methods = {}, [LQ, MODEL]
    evaluation.output = str(Path(cfg.pairs) / "evaluation")
    result = evaluate(
        plan_from_config(evaluation, command_line()),
        choose_device(cfg.device),
        notify=lambda text: tqdm.write(str(text)),
    )
    if result is None:
        raise InputError("the gate is passed by one process")
    of_images = {
        method: {
            metric: dict(zip(result.scores.stems, map(float, values), strict=True)) for metric, values in of.items()
        }
        for method, of in result.scores.scores.items()
    }
    chosen = by_severity(of_images[LQ]["psnr_rgb"])
    blind_pairs(result.scores.folders, MODEL, chosen, cfg.seed, Path(cfg.pairs))
    preferred = wins(votes, Path(cfg.pairs) / "key.json", MODEL) if votes else None
    lines = [asdict(line) for line in measures(of_images, MODEL, cfg.seed)]
    return {
        "model": str(cfg.model.folder),
        "set": cfg.set,
        "images": len(result.scores.stems),
        "lines": lines,
        "identity_by_third": identity_by_third(of_images),
        "votes": votes,
        "preferred": preferred,
    }


def identity_by_third(scores: Scores) -> dict[str, list[float]]:
    """Return method -> mean SFace cosine to the ground truth in the least, the middle and the most degraded third."""
    parts = thirds(scores[LQ]["psnr_rgb"])
    pairs = [measured_on_both(scores, MODEL, "identity_cos_sface", part) for part in parts]
    return {side: [float(pair[k].mean()) for pair in pairs] for k, side in enumerate((LQ, MODEL))}


def gate_table(record: dict) -> str:
    """Return the gate as Markdown."""
    rows = [
        [
            f"{line['name']} ({line['failed']} failed)" if line.get("failed") else line["name"],
            f"{line['input']:.4g}",
            f"{line['method']:.4g}",
            line["wanted"],
            "yes" if line["passed"] else "no",
        ]
        for line in record["lines"]
    ]
    preferred = record["preferred"]
    eye = "not looked at" if preferred is None else f"{preferred} of {EYE_IMAGES}"
    verdict = "" if preferred is None else ("yes" if preferred >= EYE_WINS else "no")
    rows.append(["preferred by eye", "", eye, f"{EYE_WINS} of {EYE_IMAGES}", verdict])
    table = markdown.table(["measure", "input", "restored", "wanted", "passed"], rows)
    shown = {method: ", ".join(f"{value:.3f}" for value in of) for method, of in record["identity_by_third"].items()}
    return (
        f"{table}\n\n{record['images']} faces of `{record['set']}`. SFace in the least, the middle and the most "
        f"degraded third: input {shown[LQ]}; restored {shown[MODEL]}."
    )
