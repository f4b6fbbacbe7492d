"""Fill the pages from `results/`, tables and pictures: `python -m scripts.benchmarks.pages`."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "data/mini/README.md", "results/benchmarks/README.md")
MARK = re.compile(r"(<!-- (?P<kind>\w+): (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, root: Path = ROOT) -> str:
    """Return `text` with every block `<!-- KIND: PATH --> ... <!-- end -->` made anew from the JSON at PATH."""

    def fill(match: re.Match) -> str:
        record = json.loads((root / match["path"]).read_text())
        return match.group(1) + BLOCKS[match["kind"]](record) + "\n" + match.group(4)

    return MARK.sub(fill, text)


def training_block(record: dict) -> str:
    """Return what was trained, how long, and on what machine."""
    lines = ["| experiment | stage | steps | batch | trained values | seconds |", "|---|---|---|---|---|---|"]
    for experiment, stages in record["experiments"].items():
        for stage, s in stages.items():
            size = f"{s['trained_parameters']:,}"
            lines.append(f"| {experiment} | {stage} | {s['steps']} | {s['batch_size']} | {size} | {s['seconds']:.0f} |")
    made = record["made_by"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    seconds = "Seconds are of a shared machine: they bound the cost from above."
    return "\n".join(
        [*lines, "", f"Made by `{made['command']}`, seed {made['seed']}, on {made['machine']}; {versions}. {seconds}"]
    )


def block(record: dict, others: bool = False) -> str:
    """Return a result's table, those of published values if `others`, its latents and what made it."""
    from lafr.evaluation.tables import table

    latents = ", ".join(f"{name} {value:.4g}" for name, value in record.get("latents", {}).items())
    latents = f"Latents: {latents}.\n\n" if latents else ""
    return f"{table(record, others=others)}\n\n{latents}{made_by(record)}"


def published_block(record: dict) -> str:
    """Return a result's table and, each in a table of its own, what every source printed for its set."""
    return block(record, others=True)


def made_by(record: dict) -> str:
    """Return the sentence that says what made a record."""
    versions = record["versions"]
    return (
        f"Made by `{record['command']}`, seed {record['seed']}, {record['date']}, {record['machine']}, "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}."
    )


def networks_block(record: dict) -> str:
    """Return how well the miniature's recogniser, landmarker and parser work."""
    lines = ["| what | score |", "|---|---|"]
    lines += [f"| Spearman of pairwise similarities: {pair} | {v:.3f} |" for pair, v in record["spearman"].items()]
    for row, found in record["finds_itself"].items():
        lines += [
            f"| a copy finds its own face first ({probe}): {row} | {100 * v:.1f} % |" for probe, v in found.items()
        ]
    lines.append(
        f"| landmarker, error over the distance of the outer eye corners | {record['landmark_nme_percent']:.2f} % |"
    )
    regions = ", ".join(f"{name} {v:.2f}" for name, v in record["region_iou"].items())
    lines.append(f"| parser, mean IoU ({regions}) | {record['region_iou_mean']:.3f} |")
    return "\n".join([f"{record['faces']}, {record['images']} faces at 128 px.", "", *lines, "", made_by(record)])


def cost_block(record: dict) -> str:
    """Return what each term of the loss costs beside the rest of a step."""
    from scripts.benchmarks.loss import loss_table

    where = (
        f"Batch {record['batch_size']} at {record['resolution']} px on {record['device']}, {record['threads']} threads."
    )
    return "\n".join([where, "", loss_table(record), "", made_by(record)])


def degradation_block(record: dict) -> str:
    """Return how fast a recipe's chain is beside BasicSR's."""
    from scripts.benchmarks.degradation import degradation_table

    return "\n".join([degradation_table(record), "", f"One core, {record['images']} draws. {made_by(record)}"])


def loader_block(record: dict) -> str:
    """Return how many pairs the loader makes beside what training eats."""
    from scripts.benchmarks.loader import loader_table

    return "\n".join([loader_table(record), "", made_by(record)])


def latents_block(record: dict) -> str:
    """Return what cached latents save."""
    from scripts.benchmarks.latents import latents_table

    where = f"Batch {record['batch_size']} at {record['resolution']} px on {record['device']}."
    return "\n".join([where, "", latents_table(record), "", made_by(record)])


def parameters_block(record: dict) -> str:
    """Return what the full-size experiment trains, part by part."""
    from scripts.benchmarks.parameters import parameters_table

    return "\n".join([parameters_table(record), "", made_by(record)])


def timesteps_block(record: dict) -> str:
    """Return how near to z_hq each t* stands before training."""
    from scripts.benchmarks.timesteps import timesteps_table

    return "\n".join([timesteps_table(record), "", made_by(record)])


def recipes_block(record: dict) -> str:
    """Return what a training step and a whole recipe cost beside the costly ways."""
    from scripts.benchmarks.training import training_table

    return "\n".join([training_table(record), "", made_by(record)])


def inference_block(record: dict) -> str:
    """Return how fast one step is beside a full UNet with prompt and time."""
    from scripts.benchmarks.inference import inference_table

    return "\n".join([inference_table(record), "", made_by(record)])


def evaluation_block(record: dict) -> str:
    """Return how long a set of pictures is scored, and in how much memory."""
    from scripts.benchmarks.evaluation import evaluation_table

    return "\n".join([evaluation_table(record), "", made_by(record)])


BLOCKS = {
    "table": block,
    "published": published_block,
    "training": training_block,
    "networks": networks_block,
    "cost": cost_block,
    "degradation": degradation_block,
    "loader": loader_block,
    "latents": latents_block,
    "parameters": parameters_block,
    "timesteps": timesteps_block,
    "recipes": recipes_block,
    "inference": inference_block,
    "evaluation": evaluation_block,
}


def picture() -> None:
    """Write `results/astronaut.png`: the astronaut (NASA, public domain) under four draws, LQ | LAFR | HQ."""
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from lafr.data.packaged import ASTRONAUT, packaged_benchmark
    from lafr.images import write_image
    from lafr.models.restorer import Restorer

    restorer = Restorer.from_pretrained("mini")
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        degradation = instantiate(compose("prepare_data", ["output=."]).degradation, _convert_="all")
    pairs = packaged_benchmark("mini", restorer.resolution, degradation, draws=4, names=ASTRONAUT)
    lq = torch.stack([pairs[i].lq for i in range(4)])
    with torch.no_grad():
        restored = restorer(lq)
    columns = [torch.cat([lq[i], restored[i], pairs[i].hq], dim=1) for i in range(4)]
    write_image(torch.cat(columns, dim=2), ROOT / "results" / "astronaut.png")


def recipes_picture(draws: int = 6, side: int = 128) -> None:
    """Write `results/recipes.jpg`: the astronaut at 512 px under the first draws of each recipe, shown at `side` px."""
    import numpy as np
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from PIL import Image, ImageDraw, ImageFont

    from lafr.data.packaged import ASTRONAUT, PackagedFaces
    from lafr.images import to_pil

    hq = PackagedFaces(512, ASTRONAUT)[0]
    recipes = sorted(path.stem for path in (ROOT / "configs" / "degradation").glob("*.yaml") if path.stem != "mini")
    left = 110
    sheet = Image.new("RGB", (left + draws * side, len(recipes) * side), "white")
    for row, name in enumerate(recipes):
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            chosen = compose("prepare_data", ["output=.", f"degradation={name}"]).degradation
        degradation = instantiate(chosen, _convert_="all")
        ImageDraw.Draw(sheet).text((6, row * side + side // 2 - 8), name, "black", ImageFont.load_default(14))
        for k in range(draws):
            lq = to_pil(degradation(hq, np.random.default_rng([0, k]))).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(lq, (left + k * side, row * side))
    sheet.save(ROOT / "results" / "recipes.jpg", quality=88)


def fill_pages() -> None:
    """Rewrite the pages' blocks and the pictures."""
    for page in PAGES:
        (ROOT / page).write_text(filled((ROOT / page).read_text()))
    picture()
    recipes_picture()
    print(f"up to date: {', '.join(PAGES)}, results/astronaut.png, results/recipes.jpg")


if __name__ == "__main__":
    fill_pages()
