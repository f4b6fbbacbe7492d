"""How fast a recipe's chain is, as a multiple of BasicSR's."""

import shlex
import sys
from pathlib import Path

COMMAND = shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])


def degradation(cfg) -> None:
    """Images per second of a recipe's chain on one core: BasicSR's functions, ours, ours on a batch of tensors."""
    import time

    import cv2
    import numpy as np
    import torch
    from hydra.core.hydra_config import HydraConfig
    from hydra.utils import instantiate
    from tqdm import tqdm

    from lafr.commands.devices import choose_device
    from lafr.data.degradation.batched import apply_batch
    from lafr.data.degradation.operators import apply
    from lafr.data.packaged import ASTRONAUT, PackagedFaces
    from lafr.provenance import provenance
    from lafr.storage import write_json
    from scripts.benchmarks.reference import FETCH, basicsr_module

    device = choose_device(cfg.device)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    recipe = HydraConfig.get().runtime.choices["degradation"]
    chain = instantiate(cfg.degradation, _convert_="all")
    side = cfg.resolution
    hq = PackagedFaces(side, ASTRONAUT)[0]
    records = [chain.draw(side, side, np.random.default_rng([cfg.seed, n])) for n in range(cfg.images)]
    basicsr = basicsr_module("data/degradations.py")
    reference = "BasicSR 1.4.2" if basicsr else "the same OpenCV calls"
    bgr = np.ascontiguousarray(((hq + 1) / 2).permute(1, 2, 0).numpy()[..., ::-1])
    batches = [records[start : start + cfg.batch_size] for start in range(0, len(records), cfg.batch_size)]
    faces = hq.to(device).expand(cfg.batch_size, -1, -1, -1)

    def tensors() -> None:
        for batch in batches:
            apply_batch(batch, faces[: len(batch)])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    rows = {
        reference: lambda: [reference_chain(basicsr, bgr, record) for record in records],
        "LAFR": lambda: [apply(record, hq) for record in records],
        f"LAFR, batches of {cfg.batch_size} on {device.type}": tensors,
    }
    for work in rows.values():  # once, untimed
        work()
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in tqdm(range(cfg.repeats), desc="degradation", unit="round"):
        for name, work in rows.items():  # in turn, so that a busy machine slows all of them
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    theirs = np.array(seconds[reference])
    record = {
        "benchmark": "degradation",
        "reference": reference,
        "rows": {
            name: {
                "ratio": float(np.median(theirs / times)),
                "lowest": float((theirs / times).min()),
                "highest": float((theirs / times).max()),
                "images_per_second": float(len(records) / np.median(times)),
            }
            for name, times in seconds.items()
        },
        "resolution": side,
        "images": len(records),
        "recipe": recipe,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **provenance(COMMAND, cfg.seed),
    }
    if basicsr is None:
        print(f"BasicSR's source package is not at hand: {FETCH}")
    target = Path(cfg.output) / f"degradation_{recipe}.json"
    write_json(record, target)
    print(degradation_table(record))
    print(f"numbers  {target}")


def reference_chain(basicsr, image, record):
    """Return `lq [3, H, W]` in [-1, 1] as GFPGAN's data set makes it of BGR `image`, with the draws of `record`."""
    import cv2
    import numpy as np
    import torch

    from lafr.data.degradation.kernels import make_kernel
    from lafr.data.degradation.operators import OPERATORS

    blur, noise, jpeg, _, *colour = record
    height, width = image.shape[:2]
    if basicsr:
        x, y, theta = (blur["kernel"][key] for key in ("sigma_x", "sigma_y", "theta"))
        kernel = basicsr.bivariate_Gaussian(blur["kernel"]["size"], x, y, theta, isotropic=x == y)
    else:
        kernel = make_kernel(**blur["kernel"])
    lq = cv2.filter2D(image, -1, kernel)
    size = int(width // blur["factor"]), int(height // blur["factor"])
    lq = cv2.resize(lq, size, interpolation=cv2.INTER_LINEAR)
    if basicsr:
        lq = basicsr.add_gaussian_noise(lq, noise["sigma"])
        lq = basicsr.add_jpg_compression(lq, jpeg["quality"])
    else:
        lq = np.clip(lq + np.float32(np.random.randn(*lq.shape)) * noise["sigma"] / 255, 0, 1)
        coded = cv2.imencode(".jpg", np.round(lq * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, jpeg["quality"]])[
            1
        ]
        lq = np.float32(cv2.imdecode(coded, 1)) / 255
    lq = cv2.resize(lq, (width, height), interpolation=cv2.INTER_LINEAR)
    for step in colour:  # GFPGAN calls OpenCV and torchvision here, as we do
        lq = OPERATORS[step["op"]](lq, **{key: value for key, value in step.items() if key != "op"})
    planes = torch.from_numpy(cv2.cvtColor(lq, cv2.COLOR_BGR2RGB).transpose(2, 0, 1)).float()
    return (planes * 255).round().clamp(0, 255) / 127.5 - 1


def degradation_table(record: dict) -> str:
    """Return the chains' speed as a Markdown table: images per second as a multiple of the reference's."""
    from lafr.evaluation import markdown

    rows = []
    for name, row in record["rows"].items():
        rows.append([name, f"{row['ratio']:.2f}x", f"{row['lowest']:.2f}–{row['highest']:.2f}x"])
    return markdown.table([f"chain, `{record['recipe']}` at {record['resolution']} px", "speed", "range"], rows)
