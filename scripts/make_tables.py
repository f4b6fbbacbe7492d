"""Fill README and model card from `results/`: tables and picture. `python scripts/make_tables.py`"""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "data/mini/README.md")
MARK = re.compile(r"(<!-- table: (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str, root: Path = ROOT) -> str:
    """Return `text` with every block `<!-- table: PATH --> ... <!-- end -->` made anew from the result at PATH."""
    return MARK.sub(lambda m: m.group(1) + block(json.loads((root / m["path"]).read_text())) + "\n" + m.group(3), text)


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

    from lafr.data.degradation import Degradation
    from lafr.data.packaged import ASTRONAUT, packaged_benchmark
    from lafr.images import write_image
    from lafr.models.restorer import Restorer

    restorer = Restorer.from_pretrained("mini")
    degradation = Degradation(noise_sigma=(0, 15), jpeg_quality=(40, 100))
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
