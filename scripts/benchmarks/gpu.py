"""All that a GPU can tell in ten minutes: `python -m scripts.benchmarks gpu --minutes 9 --out DIR`.

The jobs stand in order of value, and each writes its result as it ends: a killed run keeps what it has, and the same
command resumes. Nothing is fetched. `--wheels FOLDER`, where there is a network, gathers the packages that a machine
with torch, torchvision, peft and transformers lacks; there

    python -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=.:SITE
"""

import gc
import importlib.metadata
import importlib.util
import os
import shlex
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lafr.commands.doors import Parser
from lafr.errors import InputError
from lafr.storage import shipped

WHEELS = (
    "diffusers", "hydra-core", "omegaconf", "antlr4-python3-runtime", "vector-quantize-pytorch", "einx", "frozendict",
    "loguru", "torch-einops-utils", "accelerate", "torchmetrics", "lightning-utilities", "lpips", "facexlib",
)  # fmt: skip
MOST_MEGABYTES = 16  # of the wheels: with the repository they stay under 64 MiB
PRESETS = ("gpu80", "gpu24", "gpu12")
PRIOR = "mini_prior"
MINIATURE = (PRIOR, "mini")  # experiments, in the order in which the miniature is made


@dataclass(frozen=True)
class Scale:
    """How large the jobs are: full size on a GPU, the miniature in a rehearsal on the CPU."""

    name: str
    device: str
    batch_sizes: tuple[int, ...]
    dtypes: tuple[str, ...]
    repeats: int
    matmul_side: int
    resolution: int
    presets: tuple[str, ...] = PRESETS


FULL = Scale("full", "cuda", (16, 1, 4), ("bfloat16", "float16"), 10, 8192, 512)
REHEARSAL = Scale("mini", "cpu", (1,), ("bfloat16",), 1, 128, 128, ("gpu24",))


@dataclass(frozen=True)
class Job:
    """One measurement: its seconds at most, as far as we can tell without a GPU, and the function that makes it."""

    name: str
    seconds: float
    run: Callable[[], dict]


def plan(scale: Scale) -> list[Job]:
    """Return the jobs, the most valuable first."""
    inference = [(dtype, batch) for dtype in scale.dtypes for batch in scale.batch_sizes]
    jobs = [Job("machine", 15, partial(machine, scale))]
    jobs += [Job(f"inference_{d}_{b}", 40, partial(inference_row, scale, d, b)) for d, b in inference[:2]]
    jobs += [Job(f"training_{p}", 45, partial(training_step, scale, p, "restoration")) for p in scale.presets[:1]]
    jobs += [Job("smoke", 60, partial(smoke, scale))]
    jobs += [Job(f"inference_{d}_{b}", 40, partial(inference_row, scale, d, b)) for d, b in inference[2:]]
    jobs += [Job(f"training_{p}", 45, partial(training_step, scale, p, "restoration")) for p in scale.presets[1:]]
    jobs += [Job("degradation", 30, partial(degradation, scale))]
    first = scale.presets[0]
    jobs += [
        Job(f"training_{first}_{stage}", 30, partial(training_step, scale, first, stage))
        for stage in ("codebook", "alignment", "encoder")
    ]
    # compilation takes minutes: last
    jobs += [Job(f"compiled_{d}_{b}", 150, partial(inference_row, scale, d, b, True)) for d, b in inference[:2]]
    return jobs


def work_through(jobs: list[Job], folder: Path, deadline: float, scale: str = "full") -> dict[str, str]:
    """Run the jobs that have no result yet and fit before `deadline` (`time.monotonic`); return what became of each.

    A job that fails leaves `NAME.failed.txt` and is tried again by the next run. A result of another scale, such as a
    rehearsal's, is replaced.
    """
    import torch

    from lafr.provenance import provenance
    from lafr.storage import read_json, write_json, write_text

    outcome = {}
    for job in jobs:
        path, failed = folder / f"{job.name}.json", folder / f"{job.name}.failed.txt"
        left = deadline - time.monotonic()
        if path.is_file() and read_json(path).get("scale") == scale:
            outcome[job.name] = "there already"
        elif left < job.seconds:
            outcome[job.name] = f"no time: {job.seconds:.0f} s needed, {left:.0f} s left"
        else:
            started = time.monotonic()
            try:
                found = job.run()
                write_json({"job": job.name, "scale": scale, **found, **provenance(sys.argv[0], seed=0)}, path)
                failed.unlink(missing_ok=True)
                outcome[job.name] = f"done in {time.monotonic() - started:.0f} s"
                if lost := [name for name, said in found.get("checks", {}).items() if str(said).startswith("failed")]:
                    outcome[job.name] = f"failed in part: {', '.join(lost)}"
            except Exception as error:  # the next job may work: out of memory, a missing package
                write_text(failed, traceback.format_exc())
                outcome[job.name] = f"failed: {type(error).__name__}: {error}".splitlines()[0][:200]
            gc.collect()
            torch.cuda.empty_cache()  # a no-op without a GPU
        print(f"{job.name:<24} {outcome[job.name]}", flush=True)
    return outcome


def machine(scale: Scale) -> dict:
    """Return names and versions, and the ceilings of a square matrix product."""
    import torch

    from scripts.benchmarks.inference import matmul_gmacs

    device = torch.device(scale.device)
    on_gpu = device.type == "cuda"
    ceilings = {
        dtype: matmul_gmacs(scale.matmul_side, getattr(torch, dtype), device) for dtype in (*scale.dtypes, "float32")
    }
    facts: dict[str, Any] = {"device": torch.cuda.get_device_name() if on_gpu else "cpu", "ceilings": ceilings}
    if on_gpu:
        facts |= {"cuda": torch.version.cuda, "memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9}
    return facts


def inference_row(scale: Scale, dtype: str, batch_size: int, compiled: bool = False) -> dict:
    """Return the reference and LAFR's methods at a batch size: eager and as CUDA graphs, or compiled."""
    import torch

    from lafr.commands.launch import composed
    from scripts.benchmarks import inference

    device = torch.device(scale.device)
    compiling = f"compile=[{str(compiled).lower()}]"
    cfg = composed("benchmark_inference", f"scale={scale.name}", f"dtypes=[{dtype}]", compiling)
    size = cfg[scale.name]
    methods = inference.build_methods(cfg, size, device)
    lq = torch.rand(batch_size, 3, size.resolution, size.resolution, device=device) * 2 - 1
    for method in methods.values():
        inference.warm_up(method, lq, device)
    failed = {}
    if device.type == "cuda" and not compiled:
        for name, method in list(methods.items()):
            try:
                methods[f"{name}, CUDA graphs"] = graphed(method, lq)
            except RuntimeError as error:  # an operation that cannot be captured
                failed[name] = str(error).splitlines()[0][:300]
    for _ in range(scale.repeats):  # in turns
        for method in methods.values():
            method.seconds.append(inference.timed_pass(method, lq, device))
    reference = methods["reference"].seconds
    found = {name: inference.summary(method, batch_size, reference) for name, method in methods.items()}
    ceilings = {
        method.dtype: inference.matmul_gmacs(scale.matmul_side, method.dtype, device) for method in methods.values()
    }
    return {
        "batches": {str(batch_size): found},
        "matmul_gmacs_per_second": {str(dtype).removeprefix("torch."): value for dtype, value in ceilings.items()},
        "repeats": scale.repeats,
        "resolution": size.resolution,
        "not_captured": failed,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }


def graphed(method: Any, lq: Any) -> Any:
    """Return the method with each part but the adapter, whose search reads values, as a CUDA graph; no PSNR of it."""
    from dataclasses import replace

    import torch

    parts, x = {}, lq
    with torch.inference_mode():
        for name, part in method.parts.items():
            if isinstance(getattr(part, "timestep", None), int):
                part.timestep = torch.tensor(part.timestep, device=x.device)  # an int would be copied in the capture
            parts[name] = part if name == "adapter" else graph_of(part, x)
            x = part(x)
    return replace(method, parts=parts, seconds=[], psnr=None)


def graph_of(part: Callable, example: Any) -> Callable:
    """Capture a function of one tensor; the result of a call is a copy."""
    import torch

    given = example.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # PyTorch asks for a few runs on a stream of their own before the capture
        for _ in range(3):
            part(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = part(given)

    def replay(x: Any) -> Any:
        given.copy_(x)
        graph.replay()
        return made.clone()

    return replay


def training_step(scale: Scale, preset: str, stage: str) -> dict:
    """Return seconds and the measured peak memory of a stage's step on a preset's micro-batch, random weights."""
    import torch
    from hydra.utils import instantiate

    from lafr.commands.launch import composed
    from lafr.training.counting import optimiser_step
    from lafr.training.timing import measure
    from scripts.benchmarks import training

    size = ["adapter=sd", "model.timestep=399", f"model.resolution={scale.resolution}"] if scale is FULL else []
    device, cfg = torch.device(scale.device), composed("benchmark_training", *size)
    trainer = composed("train", "run_name=gpu", f"trainer={preset}").trainer
    faces = cfg.stage[stage if stage in cfg.stage else "restoration"].batch_size // trainer.accumulation
    generator = torch.Generator().manual_seed(0)
    with device:  # a thousand times as fast as random weights made on the CPU
        base = random_base(scale)
        loss = training_loss(scale)
    objective = training.built(stage, cfg, base, instantiate(cfg.adapter), loss).to(device)
    if trainer.gradient_checkpointing:
        objective.enable_gradient_checkpointing()
    shape = (faces, 3, scale.resolution, scale.resolution)
    batch = {key: torch.rand(shape, generator=generator).mul(2).sub(1).to(device) for key in ("lq", "hq")}
    batch["n"] = torch.arange(faces)
    step, _ = optimiser_step(objective, batch, trainer.mixed_precision)
    cost = measure(step, device, repeats=5 if scale is FULL else 1, warm_up=2 if scale is FULL else 0)
    found = {"seconds": cost.seconds, "fastest": cost.fastest, "slowest": cost.slowest, "faces": faces}
    found |= {"preset": preset, "stage": stage, "seconds_of_16_faces": cost.seconds * 16 / faces}
    if device.type == "cuda":
        found |= {
            "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
            "reserved_gb": torch.cuda.max_memory_reserved() / 1e9,
        }
        del objective, base, loss, batch, step
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return found


def training_loss(scale: Scale) -> Any:
    """Return the loss of a stage at full size, networks with random weights; without any in the rehearsal."""
    if scale is not FULL:
        return pixel_loss()
    from lafr.commands.preflight import built
    from lafr.training.hollow import hollowed
    from scripts.benchmarks.losses import composed as settings_of

    return built(hollowed(settings_of("ffhq_0.9pct", "multilevel")["loss"]))


def random_base(scale: Scale) -> Any:
    """Return Stable Diffusion 2.1-base, or the miniature's base, with random weights on the default device."""
    from hydra.utils import instantiate

    from lafr.commands.launch import composed
    from lafr.models.base.model import Base

    base: Base = instantiate(composed("benchmark_inference")[scale.name].build, _convert_="all")
    return base


def degradation(scale: Scale) -> dict:
    """Return images a second of a recipe's chain: OpenCV on one core, and batches of tensors on the device."""
    import cv2
    import numpy as np
    import torch
    from hydra.utils import instantiate

    from lafr.commands.launch import composed
    from lafr.data.degradation.batched import apply_batch
    from lafr.data.degradation.operators import apply
    from lafr.training.timing import measure

    device, side = torch.device(scale.device), scale.resolution
    chain = instantiate(composed("benchmark_degradation").degradation, _convert_="all")
    records = [chain.draw(side, side, np.random.default_rng([0, n])) for n in range(16)]
    hq = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = {}
    for dtype in (torch.float32, torch.float64):
        faces = hq.to(device, dtype).expand(16, -1, -1, -1)
        found[str(dtype)[6:]] = 16 / measure(partial(apply_batch, records, faces), device, repeats=3).seconds
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    one_core = measure(lambda: [apply(record, hq) for record in records], torch.device("cpu"), repeats=1)
    cv2.setNumThreads(threads[0])  # the jobs after it have all of them
    torch.set_num_threads(threads[1])
    return {"images_per_second": found, "one_core": 16 / one_core.seconds, "resolution": side, "batch_size": 16}


def smoke(scale: Scale) -> dict:
    """Return of each path on the device whether it works, with the largest difference from the CPU in float32."""
    import torch

    checks: Mapping[str, Callable[[], object]] = {
        "float32": partial(pipeline_difference, scale.device, torch.float32),
        "bfloat16": partial(pipeline_difference, scale.device, torch.bfloat16),
        "offload": partial(pipeline_difference, scale.device, torch.float32, offload=True),
        "autocast": partial(autocast_step, scale.device),
        "accelerate launch": partial(launched, scale.device),
        "onnxruntime": partial(onnx_on, scale.device),
    }
    found = {}
    for name, check in checks.items():
        try:
            found[name] = check()
        except Exception as error:
            found[name] = f"failed: {type(error).__name__}: {error}".splitlines()[0][:300]
    return {"checks": found}


def pipeline_difference(device: str, dtype: Any, offload: bool = False) -> float:
    """Return the largest difference of the miniature's pipeline on the device from the CPU's in float32, of 1."""
    import torch

    from lafr.export.pipeline import LAFRPipeline

    image = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    expected = LAFRPipeline.from_pretrained("mini")(image, output_type="pt").images
    pipe = LAFRPipeline.from_pretrained("mini")
    if offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device, dtype)
    return float((pipe(image, output_type="pt").images - expected).abs().max())


def autocast_step(device: str) -> float:
    """Return the loss of a training step of the miniature under autocast in bfloat16; raises where it is not finite."""
    import torch

    from lafr.models.restorer import Restorer
    from lafr.training.objectives import RestorationObjective

    objective = RestorationObjective(Restorer.from_pretrained("mini"), pixel_loss()).to(device).train()
    image = torch.rand(2, 3, 128, 128, device=device) * 2 - 1
    with torch.autocast(torch.device(device).type, torch.bfloat16):
        total = objective.total(objective({"lq": image, "hq": image, "n": torch.arange(2)}))
    total.backward()
    if not torch.isfinite(total):
        raise ArithmeticError(f"the loss is {total.item()}")
    return total.item()


def pixel_loss() -> Any:
    """Return a loss without networks."""
    from lafr.losses.appearance import LatentL1, PixelMSE
    from lafr.losses.multilevel import MultiLevelLoss

    terms = {"pixel_mse": PixelMSE(), "latent_l1": LatentL1()}
    return MultiLevelLoss(terms, dict.fromkeys(terms, 1.0))


def launched(device: str) -> str:
    """Start the smoke experiment by `accelerate launch`; return the last line that it prints."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        place = ["--cpu"] if device == "cpu" else ["--num_processes=1", "--mixed_precision=bf16"]
        command = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            *place,
            "-m",
            "lafr",
            "train",
            "+experiment=smoke",
        ]
        command += ["loss=latent", "stages=[codebook,restoration]", f"run_dir={folder}/run", "preflight=false"]
        command += ["trainer.trackers=[]", f"data.root={noise_faces(Path(folder) / 'faces')}", "data=faces"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise InputError(f"ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout.strip().splitlines()[-1][:200]


def noise_faces(folder: Path) -> Path:
    """Write eight images of noise: the paths are checked, nothing is learned."""
    import torch

    from lafr.images import write_image

    for number in range(8):
        noise = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(number)) * 2 - 1
        write_image(noise, folder / f"{number}.png")
    return folder


def onnx_on(device: str) -> str:
    """Return onnxruntime's providers; whether the graph runs is checked where it has CUDA's."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "not installed"
    import onnxruntime

    return ", ".join(onnxruntime.get_available_providers())


def gather_wheels(folder: Path) -> None:
    """Download, in the versions installed here, the packages that a bare machine lacks."""
    names = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*pip, *names], check=True)
    built = [path.name for path in folder.glob("*.whl") if not path.stem.endswith("-none-any")]
    if built:  # of this Python and processor, which may not be that machine's
        raise InputError(f"{', '.join(built)} would not install everywhere; pin a version that is Python alone")
    size = sum(path.stat().st_size for path in folder.glob("*.whl")) / 1e6
    print(f"{len(names)} wheels, {size:.1f} MB, in {folder}")
    if size > MOST_MEGABYTES:
        raise InputError(f"the wheels have {size:.0f} MB; at most {MOST_MEGABYTES} may travel")


def train_commands(names: Sequence[str], folder: Path, faces: str) -> list[list[str]]:
    """Return the command of each experiment in bfloat16, those after a prior on the base that it leaves."""
    commands = []
    for name in names:
        settings = ["trainer.mixed_precision=bf16", f"run_dir={folder / name}", f"data.root={faces}"]
        if PRIOR in names[: list(names).index(name)]:
            settings.append(f"model.build.folder={folder / PRIOR / 'model'}")
        commands.append([sys.executable, "-m", "lafr", "train", f"+experiment={name}", *settings])
    return commands


def train(names: Sequence[str], folder: Path, faces: str, minutes: float) -> None:
    """Train experiments one after another for some minutes; the same command resumes."""
    names = list(dict.fromkeys(one for name in names for one in (MINIATURE if name == "miniature" else [name])))
    known = sorted(path.stem for path in shipped("configs").glob("experiment/mini*.yaml"))
    for name in names:
        if name not in known:
            raise InputError("train", name, f"miniature or some of {', '.join(known)}")
    deadline = time.monotonic() + 60 * minutes
    for command in train_commands(names, folder, faces):
        print(shlex.join(command[1:]), flush=True)
        with subprocess.Popen(command) as process:
            try:
                code = process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.terminate()  # it saves its running step, which `subprocess.run` would lose
                return print("out of time; the same command resumes", flush=True)
        if code:
            raise InputError(f"training {command[4]} ended with {code}; its own line above says why")


def stop_at(deadline: float) -> None:
    """End the process at a deadline (`time.monotonic`), whatever a job is doing."""

    def wait() -> None:
        time.sleep(max(0.0, deadline - time.monotonic()))
        print("out of time; the same command resumes", flush=True)
        os._exit(3)

    threading.Thread(target=wait, daemon=True).start()


def gpu_table(folder: Path) -> str:
    """Return the measured inference rows, and "missing" for what was not."""
    from lafr.evaluation import markdown
    from lafr.storage import read_json

    rows = []
    for job in plan(FULL):
        if not job.name.startswith(("inference_", "compiled_")):
            continue
        path = folder / f"{job.name}.json"
        if not path.is_file():
            rows.append([job.name, "missing", "", "", "", ""])
            continue
        record = read_json(path)
        for methods in record["batches"].values():
            for name, found in methods.items():
                whole = found["parts"]["whole"]
                share = whole["gmacs"] / whole["seconds"] / record["matmul_gmacs_per_second"][found["dtype"]]
                speed = [f"{found['ms_per_image']:.2f}", f"{found['images_per_second']:.1f}", f"{whole['speed']:.2f}x"]
                rows.append([job.name, name, *speed, f"{found['peak_mb'] / 1000:.1f} GB, {100 * share:.0f} %"])
    columns = ["job", "method", "ms an image", "images a second", "speed", "peak memory, share of the ceiling"]
    return markdown.table(columns, rows)


def main() -> None:
    """Run the command line."""
    top = Parser("Measure on a GPU what ten minutes allow.", "python -m scripts.benchmarks gpu")
    top.add_argument("--minutes", type=float, default=9, metavar="N", help="to stop after (default 9)")
    top.add_argument("--out", type=Path, default=Path("runs/gpu"), metavar="DIR", help="of the results (runs/gpu)")
    top.add_argument("--dry-run", action="store_true", help="rehearse every job on the CPU with the miniature")
    top.add_argument("--plan", action="store_true", help="print the jobs and stop")
    top.add_argument("--table", action="store_true", help="print the table of what is in DIR and stop")
    top.add_argument(
        "--wheels", type=Path, default=None, metavar="FOLDER", help="gather the packages to carry and stop"
    )
    top.add_argument(
        "--train", nargs="+", default=None, metavar="EXPERIMENT", help="spend the minutes on miniature, or on mini*"
    )
    top.add_argument("--faces", default="../shared/faces", metavar="FOLDER", help="of --train")
    given = top.parse_args()
    run(given)


def run(given: Any) -> None:
    """Do what the command line asks for."""
    scale = REHEARSAL if given.dry_run else FULL
    if given.wheels:
        return gather_wheels(given.wheels)
    if given.plan:
        at = 0.0
        for job in plan(scale):
            at += job.seconds
            print(f"{job.name:<24} {job.seconds:4.0f} s, by {at / 60:4.1f} min")
        return None
    given.out.mkdir(parents=True, exist_ok=True)
    if given.table:
        return print(gpu_table(given.out))
    if given.train:
        return train(given.train, given.out, given.faces, given.minutes)
    deadline = time.monotonic() + 60 * given.minutes
    stop_at(deadline)
    outcome = work_through(plan(scale), given.out, deadline, scale.name)
    if any(text.startswith("failed") for text in outcome.values()):
        sys.exit(1)
    return None


if __name__ == "__main__":
    main()
