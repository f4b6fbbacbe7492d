"""Fill README and model card from `results/`: tables and picture. `python scripts/make_tables.py`"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "data/mini/README.md")
MARK = re.compile(r"(<!-- (?P<kind>table|training): (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, root: Path = ROOT) -> str:
    """Return `text` with every block `<!-- KIND: PATH --> ... <!-- end -->` made anew from the JSON at PATH."""

    def fill(match: re.Match) -> str:
        record = json.loads((root / match["path"]).read_text())
        body = block(record) if match["kind"] == "table" else training_block(record)
        return match.group(1) + body + "\n" + match.group(4)

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


def block(record: dict) -> str:
    """Return a result's table, its latents and what made it."""
    from lafr.results import markdown_table

    latents = ", ".join(f"{name} {value:.4g}" for name, value in record["latents"].items())
    versions = record["versions"]
    made = (
        f"`{record['command']}`, seed {record['seed']}, {record['date']}, {record['machine']}, "
        f"torch {versions['torch']}, diffusers {versions['diffusers']}"
    )
    head = f"{record['benchmark']}, {record['images']} images; mean (95 % bootstrap interval over images)."
    return f"{head}\n\n{markdown_table(record)}\n\nLatents: {latents}.\n\nMade by {made}."


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


def main() -> None:
    """Rewrite the pages' blocks and the picture."""
    for page in PAGES:
        (ROOT / page).write_text(filled((ROOT / page).read_text()))
    picture()
    print(f"up to date: {', '.join(PAGES)}, results/astronaut.png")


if __name__ == "__main__":
    main()
