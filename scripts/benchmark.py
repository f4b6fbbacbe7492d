"""What things cost: `python scripts/benchmark.py TOPIC`, a `benchmark_TOPIC.py` each.

Ratios within one run; absolute times are this machine's.
"""

import importlib
import sys
from pathlib import Path

from command import run

TOPICS = sorted(path.stem.removeprefix("benchmark_") for path in Path(__file__).parent.glob("benchmark_*.py"))

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in TOPICS:
        sys.exit(f"error: say what to measure: python scripts/benchmark.py {'|'.join(TOPICS)}")
    module = importlib.import_module(f"benchmark_{sys.argv[1]}")  # first: it notes the command as it was typed
    topic = sys.argv.pop(1)
    run(lambda cfg: getattr(module, topic)(cfg), f"benchmark_{topic}")  # ours: Hydra looks beside the function's file
