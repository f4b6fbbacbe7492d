"""What the full-size path reads, its sizes and where it is from: `python -m scripts.benchmarks files`.

Which networks an experiment and a protocol need is asked of their configurations; sizes are counted on the
architectures in float32, without any weights, and are those of the files to within a few percent.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from diffusers import AutoencoderKL, UNet2DConditionModel
from omegaconf import OmegaConf
from torch import nn

from lafr.commands.launch import composed
from lafr.commands.preflight import networks_of
from lafr.evaluation import markdown
from lafr.evaluation.protocols import metrics_of
from lafr.metrics.registry import describe
from lafr.models.base.supported import KNOWN
from lafr.networks import NEEDS, Needs
from lafr.networks.held_out import AdaFace
from lafr.networks.landmarkers import AWingFAN
from lafr.networks.parsers import ParseNet
from lafr.networks.recognisers import ArcFaceIRSE50
from lafr.provenance import provenance
from lafr.storage import write_json
from lafr.weights import EXTERNAL

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "python -m scripts.benchmarks files"
EXPERIMENT, PROTOCOL = "ffhq_0.9pct", "lafr"
FFHQ_GB, FFHQ_FACES = 89.1, 70_000  # images1024x1024, as its repository says
# file -> its architecture
ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "torchvision_vgg16": lambda: torchvision.models.vgg16(weights=None),
    "torchvision_alexnet": lambda: torchvision.models.alexnet(weights=None),
    "arcface_irse50": lambda: ArcFaceIRSE50().backbone,
    "awing_fan": lambda: AWingFAN().network,
    "parsenet": lambda: ParseNet().network,
    "adaface": AdaFace,
}
CHECKPOINTS = ("awing_fan", "adaface")  # may hold more than the network


def megabytes(build: Callable[[], nn.Module]) -> int:
    """Return the size of a network's state in float32, in 10^6 bytes."""
    with torch.device("meta"):
        state = build().state_dict()
    return round(sum(value.numel() * 4 for value in state.values()) / 1e6)


def files() -> dict:
    """Return one record for each thing that training and the evaluation need, what no `pip install` brings."""
    config = composed("train", f"+experiment={EXPERIMENT}")
    settings = OmegaConf.to_container(config, resolve=True)
    sd21 = KNOWN[settings["model"]["build"]["expect"]]
    base = sum(map(megabytes, (lambda: AutoencoderKL(**sd21.vae), lambda: UNet2DConditionModel(**sd21.unet))))
    fetched = settings["model"]["build"]["remedy"].partition(", or ")[0]
    faces = round(1000 * FFHQ_GB * 700 / FFHQ_FACES)
    rows = [
        {"what": f"{sd21.title}: vae/, unet/, scheduler/", "megabytes": base, "from": f"`{fetched}`", "for": "model"},
        {
            "what": "FFHQ, images1024x1024: the 700 of data/ffhq_600.txt and data/ffhq_val.txt",
            "megabytes": faces,
            "from": "https://github.com/NVlabs/ffhq-dataset",
            "for": "training",
        },
    ]
    needed = [finding.name for finding in networks_of(settings) if finding.name in EXTERNAL]
    rows += list(listed(needed, "loss"))
    metrics = [name for metric in metrics_of(PROTOCOL) for name in describe(metric).networks]
    of_metrics = [name for network in metrics for name in NEEDS.get(network, Needs((network,))).files]
    rows += list(listed([name for name in dict.fromkeys(of_metrics) if name not in needed], "metrics"))
    rows.append(
        {
            "what": "CelebA-Test: self_celeba_512_v2 (LQ) and celeba_512_validation (HQ)",
            "megabytes": None,
            "from": "https://github.com/LIAGM/DAEFR and https://xinntao.github.io/projects/gfpgan link them",
            "for": "evaluation",
        }
    )
    return {"experiment": EXPERIMENT, "protocol": PROTOCOL, "files": rows}


def listed(names: list[str], use: str) -> Iterator[dict]:
    """Yield the record of each file that no package brings."""
    for name in names:
        file = EXTERNAL[name]
        if file.package is None:
            size = megabytes(ARCHITECTURES[name]) if name in ARCHITECTURES else None
            address = file.remedy.removeprefix("download ")
            source = f"[{address.split('/')[2]}]({address})"
            yield {"what": file.name, "megabytes": size, "at_least": name in CHECKPOINTS, "from": source, "for": use}


def files_table(record: dict) -> str:
    """Return the files as a Markdown table."""
    rows = []
    for file in record["files"]:
        size = "–" if file["megabytes"] is None else f"{file['megabytes']:,}"
        size = f"over {size}" if file.get("at_least") else size
        rows.append([file["what"], file["for"], size, file["from"]])
    return markdown.table(["file", "for", "MB, about", "from"], rows)


def main() -> None:
    """Count, write and print."""
    record = files() | provenance(COMMAND, seed=0)
    target = ROOT / "results" / "files.json"
    write_json(record, target)
    print(files_table(record))
    print(f"numbers  {target.relative_to(ROOT)}")
