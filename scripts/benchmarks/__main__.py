"""What things cost: `python -m scripts.benchmarks TOPIC`, a module each.

Ratios within one run; absolute times are this machine's.
"""

import importlib
import sys
from pathlib import Path

from lafr.commands.launch import run

OTHERS = ("__init__", "__main__", "pages", "parameters", "reference")
TOPICS = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in OTHERS)

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TOPICS:
        sys.exit(f"error: say what to measure: python -m scripts.benchmarks {'|'.join(TOPICS)}")
    module = importlib.import_module(f"scripts.benchmarks.{sys.argv[1]}")  # first: it notes the command as it was typed
    topic = sys.argv.pop(1)
    run(lambda cfg: getattr(module, topic)(cfg), f"benchmark_{topic}")  # ours: Hydra looks beside the function's file
