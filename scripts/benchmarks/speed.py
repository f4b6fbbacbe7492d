"""Measure every row about speed: `python -m scripts.benchmarks speed`. Each part is a command of its own."""

import os
import shlex
import subprocess
import sys

from lafr.commands.doors import Parser
from lafr.errors import InputError

# of oneDNN, PyTorch and MKL: none uses a wider instruction
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
BATCHES = ["inference", "reference=false", "batch_sizes=[1,4]", "repeats=1", "file=inference_batches"]
# name -> arguments of `python -m scripts.benchmarks`, and variables
PARTS: dict[str, tuple[list[str], dict[str, str]]] = {
    "inference": (["inference", "repeats=2"], {}),
    "batches": (BATCHES, {}),
    "avx2": (["inference", "dtypes=[float32]", "repeats=1", "file=inference_avx2"], AVX2),
    "operators": (["operators"], AVX2),
    "startup": (["startup"], {}),
    "folder": (["folder"], {}),
    "precision": (["precision"], {}),
    "precision_avx2": (["precision", "file=precision_avx2"], AVX2),
}


def main() -> None:
    """Run the command line."""
    top = Parser("Measure every row about speed.", "python -m scripts.benchmarks speed")
    top.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all when none is given")
    chosen = top.parse_args().parts or list(PARTS)
    for name in chosen:
        if name not in PARTS:  # said before the first is measured
            raise InputError("parts", name, f"some of {', '.join(PARTS)}")
    for name in chosen:
        arguments, variables = PARTS[name]
        shown = " ".join([*(f"{key}={value}" for key, value in variables.items()), "python -m scripts.benchmarks"])
        print(f"{shown} {shlex.join(arguments)}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "scripts.benchmarks", *arguments]
        if code := subprocess.run(command, env=os.environ | variables, check=False).returncode:
            raise InputError(f"part {name} ended with {code}; its own line above says why")


if __name__ == "__main__":
    main()
