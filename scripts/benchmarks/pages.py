"""Fill the pages from `results/`, tables and figures: `python -m scripts.benchmarks pages`."""

import importlib
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lafr.commands.doors import Parser
from lafr.evaluation import markdown
from lafr.metrics.registry import describe
from lafr.storage import atomic_write, read_json, write_text
from scripts.benchmarks import prose

ROOT = Path(__file__).resolve().parents[2]
# pages with blocks, and all pages with sentences whose numbers are filled
BLOCKED = (
    "README.md",
    "data/mini/README.md",
    "docs/reproduce.md",
    "results/benchmarks/README.md",
    "results/findings.md",
)
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md"))
PAGES = (*BLOCKED, *(page for page in DOCS if page not in BLOCKED), "data/README.md")
# of the short table: none is scored by a network that the losses use
SHORT = ("psnr_rgb", "ssim_rgb", "st_lpips_vgg", "identity_cos_sface", "identity_distance_dlib")
MARK = re.compile(r"(<!-- (?P<kind>\w+): (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, root: Path = ROOT) -> str:
    """Return `text` with every block `<!-- KIND: PATH --> ... <!-- end -->` filled from the JSON at PATH.

    So are the numbers in sentences of `scripts.benchmarks.prose`.
    """

    def fill(match: re.Match) -> str:
        path = root / match["path"]
        made = BLOCKS[match["kind"]](read_json(path)) if path.is_file() else "Not measured yet."
        return match.group(1) + made + "\n" + match.group(4)

    return prose.filled(MARK.sub(fill, text))


def training_block(record: dict) -> str:
    """Return what was trained, how long, and on what machine."""
    rows = []
    for experiment, stages in record["experiments"].items():
        for stage, s in stages.items():
            size = f"{s['trained_parameters']:,}"
            rows.append([experiment, stage, s["steps"], s["batch_size"], size, f"{s['seconds']:.0f}"])
    table = markdown.table(["experiment", "stage", "steps", "batch", "trained values", "seconds"], rows)
    made = record["made_by"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return (
        f"{table}\n\nMade by `{made['command']}`, seed {made['seed']}, on {made['machine']}; {versions}. "
        "Seconds are of a shared machine: they bound the cost from above."
    )


def result_block(record: dict, others: bool = False) -> str:
    """Return a result's table, those of published values if `others`, its latents and what made it."""
    from lafr.evaluation.tables import table

    latents = ", ".join(f"{name} {value:.4g}" for name, value in record.get("latents", {}).items())
    latents = f"Latents: {latents}.\n\n" if latents else ""
    return f"{table(record, others=others)}\n\n{latents}{made_by(record)}"


def scores_block(record: dict) -> str:
    """Return a result's means of a few metrics, for a page that is read first."""
    kinds = [describe(name) for name in SHORT]
    rows = [
        [method, *(f"{scores[kind.name]['mean']:.{kind.digits}f}" for kind in kinds)]
        for method, scores in record["rows"].items()
    ]
    table = markdown.table(["method", *(f"{kind.name} {kind.direction}" for kind in kinds)], rows)
    return f"{table}\n\nMeans of {record['benchmark']}, {record['images']} images. {made_by(record)}"


def made_by(record: dict) -> str:
    """Return the sentence that says what made a record."""
    versions = record["versions"]
    return (
        f"Made by `{record['command']}`, seed {record['seed']}, {record['date']}, {record['machine']}, "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}."
    )


def networks_block(record: dict) -> str:
    """Return how well the miniature's recogniser, landmarker and parser work."""
    rows = [[f"Spearman of pairwise similarities: {pair}", f"{v:.3f}"] for pair, v in record["spearman"].items()]
    for network, found in record["finds_itself"].items():
        for probe, share in found.items():
            rows.append([f"a copy finds its own face first ({probe}): {network}", f"{100 * share:.1f} %"])
    error = f"{record['landmark_nme_percent']:.2f} %"
    rows.append(["landmarker, error over the distance of the outer eye corners", error])
    regions = ", ".join(f"{name} {v:.2f}" for name, v in record["region_iou"].items())
    rows.append([f"parser, mean IoU ({regions})", f"{record['region_iou_mean']:.3f}"])
    head = f"{record['faces']}, {record['images']} faces at 128 px."
    return "\n\n".join([head, markdown.table(["what", "score"], rows), made_by(record)])


def benchmark_block(topic: str, record: dict, head: str = "", note: str = "") -> str:
    """Return the table of `scripts.benchmarks.TOPIC` and what made it.

    Args:
        topic: name of the module.
        record: its JSON.
        head: sentence above the table.
        note: sentence below it; both may name the record's keys in braces.
    """
    table = getattr(importlib.import_module(f"scripts.benchmarks.{topic}"), f"{topic}_table")(record)
    made = f"{note.format(**record)} {made_by(record)}".strip()
    return "\n\n".join(part for part in (head.format(**record), table, made) if part)


def speed_block(record: dict) -> str:
    """Return the speed of one image relative to the reference, in a sentence."""
    said = []
    for name, found in record["batches"]["1"].items():
        if name != "reference":
            whole = found["parts"]["whole"]
            ceiling = record["matmul_gmacs_per_second"][found["dtype"]]
            share = 100 * whole["gmacs"] / whole["seconds"] / ceiling
            said.append(f"{name} **{whole['speed']:.2f}x**, at {share:.0f} % of what a matrix product reaches")
    where = f"{record['machine']}, {record.get('instructions', 'AVX512')}"
    return (
        f"One image of {record['resolution']} px, relative to an OSEDiff-style reference ({where}): {'; '.join(said)}."
    )


def of_topic(topic: str, **texts: Any) -> Callable[[dict], str]:
    """Return the block of a benchmark's record."""
    return partial(benchmark_block, topic, **texts)


def hours_block(record: dict) -> str:
    """Return the sentence about the headline experiment's cost."""
    return importlib.import_module("scripts.benchmarks.training").hours_sentence(record)


BLOCKS: dict[str, Callable[[dict], str]] = {
    "table": result_block,
    "scores": scores_block,
    "published": partial(result_block, others=True),
    "training": training_block,
    "networks": networks_block,
    "cost": of_topic("loss", head="Batch {batch_size} at {resolution} px on {device}, {threads} threads."),
    "degradation": of_topic("degradation", note="One core, {images} samples."),
    "loader": of_topic("loader"),
    "latents": of_topic("latents", head="Batch {batch_size} at {resolution} px on {device}."),
    "parameters": of_topic("parameters"),
    "files": of_topic("files"),
    "timesteps": of_topic("timesteps"),
    "prior": of_topic("prior"),
    "gate": of_topic("gate"),
    "alignment": of_topic("alignment"),
    "recipes": of_topic("training"),
    "losses": of_topic("losses"),
    "hours": hours_block,
    "findings": of_topic("findings"),
    "inference": of_topic("inference"),
    "operators": of_topic("operators"),
    "speed": speed_block,
    "precision": of_topic("precision"),
    "evaluation": of_topic("evaluation"),
    "startup": of_topic("startup"),
    "folder": of_topic("folder"),
    "small_faces": of_topic("small_faces"),
    "photos": of_topic("photos"),
    "decoders": of_topic("decoders"),
    "faults": of_topic("faults"),
}


def astronaut_figure() -> None:
    """Write `results/astronaut.png`: the astronaut (NASA, public domain), four degradations, LQ | LAFR | HQ."""
    import torch
    from hydra.utils import instantiate

    from lafr.commands.launch import composed
    from lafr.data.packaged import ASTRONAUT, packaged_benchmark
    from lafr.images import write_image
    from lafr.models.restorer import Restorer

    restorer = Restorer.from_pretrained("mini")
    degradation = instantiate(composed("prepare_data", "output=.").degradation, _convert_="all")
    pairs = packaged_benchmark("mini", restorer.resolution, degradation, draws=4, names=ASTRONAUT)
    lq = torch.stack([pairs[i].lq for i in range(4)])
    with torch.no_grad():
        restored = restorer(lq)
    columns = [torch.cat([lq[i], restored[i], pairs[i].hq], dim=1) for i in range(4)]
    write_image(torch.cat(columns, dim=2), ROOT / "results" / "astronaut.png")


def recipes_figure(samples: int = 6, side: int = 128) -> None:
    """Write `results/recipes.jpg`: the astronaut at 512 px, first samples of each recipe, shown at `side` px."""
    import numpy as np
    from hydra.utils import instantiate
    from PIL import Image, ImageDraw, ImageFont

    from lafr.commands.launch import composed
    from lafr.data.packaged import ASTRONAUT, PackagedFaces
    from lafr.images import to_pil

    hq = PackagedFaces(512, ASTRONAUT)[0]
    recipes = sorted(path.stem for path in (ROOT / "configs" / "degradation").glob("*.yaml") if path.stem != "mini")
    left = 110
    sheet = Image.new("RGB", (left + samples * side, len(recipes) * side), "white")
    for row, name in enumerate(recipes):
        chosen = composed("prepare_data", "output=.", f"degradation={name}").degradation
        degradation = instantiate(chosen, _convert_="all")
        ImageDraw.Draw(sheet).text((6, row * side + side // 2 - 8), name, "black", ImageFont.load_default(14))
        for k in range(samples):
            lq = to_pil(degradation(hq, np.random.default_rng([0, k]))).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(lq, (left + k * side, row * side))
    atomic_write(ROOT / "results" / "recipes.jpg", partial(sheet.save, quality=88))


def fill_pages(figures: bool = True) -> None:
    """Rewrite the pages' blocks and, if asked for, the figures."""
    for page in PAGES:
        write_text(ROOT / page, filled((ROOT / page).read_text(encoding="utf-8")))
    if figures:
        astronaut_figure()
        recipes_figure()
    print(f"up to date: {len(PAGES)} pages{', results/astronaut.png, results/recipes.jpg' if figures else ''}")


def main() -> None:
    """Run the command line."""
    top = Parser(
        "Fill the tables of the pages from results/, and draw the figures.", "python -m scripts.benchmarks pages"
    )
    top.add_argument("--text-only", action="store_true", help="leave the figures unchanged")
    fill_pages(figures=not top.parse_args().text_only)


if __name__ == "__main__":
    main()
