"""What things cost: `python -m scripts.benchmarks TOPIC`, a module each.

Ratios are taken within one run; absolute times are this machine's.
"""

import importlib
import sys
from pathlib import Path

from omegaconf import DictConfig

from lafr.commands.doors import Parser, one_line_errors
from lafr.commands.launch import command_line, run
from lafr.errors import as_python, require_whole
from lafr.storage import shipped

NAME = "python -m scripts.benchmarks"
# settings that count something: none can be 0
COUNTS = ("batch_size", "calibration", "ddim_steps", "draws", "images", "listed", "matmul_side", "photos", "processes",
          "repeats", "resolution", "rounds", "samples", "steps", "width")  # fmt: skip
# topic -> what it writes; the measured topics are described by configs/benchmark_TOPIC.yaml
WRITTEN = {
    "parameters": "Count the values that the full-size experiment trains.",
    "files": "List the files that the full-size path reads.",
    "speed": "Measure every row about speed, part by part.",
    "gpu": "Measure on a GPU what ten minutes allow.",
    "pages": "Fill the pages' tables.",
}


def topics() -> dict[str, str]:
    """Return topic -> the question that it answers."""
    files = sorted(shipped("configs").glob("benchmark_*.yaml"))
    questions = {path.stem.removeprefix("benchmark_"): path.read_text(encoding="utf-8") for path in files}
    return {topic: text.removeprefix("# ").partition("?")[0] + "?" for topic, text in questions.items()} | WRITTEN


def measure(topic: str, cfg: DictConfig) -> None:
    """Measure a topic, write its record and print its table."""
    require_whole(1, **{name: cfg[name] for name in COUNTS if name in cfg and cfg[name] is not None})
    import torch

    from lafr.provenance import provenance
    from lafr.storage import write_json

    module = importlib.import_module(f"scripts.benchmarks.{topic}")
    measured = getattr(module, topic)(cfg)
    target = Path(cfg.output) / f"{measured.pop('file', topic)}.json"
    device = torch.device(measured.pop("device", "cpu"))
    record = {
        "benchmark": topic,
        **measured,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        **provenance(command_line(), cfg.seed),
    }
    write_json(record, target)
    print(getattr(module, f"{topic}_table")(record))
    print(f"numbers  {target}")


def main() -> None:
    """Run the command line."""
    known = topics()
    if len(sys.argv) < 2 or sys.argv[1] not in known:
        listed = "\n".join(f"  {topic:<12} {question}" for topic, question in known.items())
        top = Parser("Measure what things cost.", NAME, epilog=f"topics ({NAME} TOPIC --help says more):\n{listed}")
        top.add_argument("topic", metavar="TOPIC", choices=list(known), help="one of the topics below")
        top.parse_args(sys.argv[1:] or ["--help"])
    topic = sys.argv.pop(1)
    sys.argv[0] = f"{NAME} {topic}"
    if topic in WRITTEN:
        if topic in ("parameters", "files"):  # without options, and their imports take seconds
            Parser(WRITTEN[topic]).parse_args()
        with one_line_errors(as_python):
            importlib.import_module(f"scripts.benchmarks.{topic}").main()
    else:
        run(lambda cfg: measure(topic, cfg), f"benchmark_{topic}")


if __name__ == "__main__":
    main()
