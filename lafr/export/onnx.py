"""The fused restorer as one ONNX graph: `lq [B, 3, R, R]` in [-1, 1] -> `restored`, any B, for onnxruntime.

Limits: the resolution R is fixed; float32; the decoder runs whole, so memory is that of the untiled VAE; weights above
2 GB (Stable Diffusion's) are stored next to the graph in `restorer.onnx.data`. The nearest code is an argmin: where two
codes are equally near within rounding, another runtime may take the other one, which changes the image around that
position.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lafr.errors import need
from lafr.export.model_card import CARD, model_card, read_results
from lafr.export.pipeline import fused, require_free
from lafr.models.restorer import Restorer
from lafr.storage import atomic_folder, write_text

GRAPH = "restorer.onnx"
OPSET = 18
ONE_FILE = 1_900_000_000  # bytes of weights; protobuf stops at 2 GiB
EXTRA = "'lafr[onnx]'"
USAGE = """```python
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("{graph}")
face = Image.open("aligned_face.png").convert("RGB").resize(({side}, {side}), Image.Resampling.LANCZOS)
lq = (np.asarray(face, np.float32).transpose(2, 0, 1)[None] / 127.5) - 1  # [B, 3, {side}, {side}], any B
restored = session.run(None, {{"lq": lq}})[0]  # same shape, [-1, 1], not clamped
```

One graph, opset {opset}: {side} px only, float32, the LoRA merged. Keep {graph}.data, if present, next to it.
On two random images onnxruntime and PyTorch differ by {difference:.1e} at most, of 2. Where two codes are equally near
within rounding, another runtime may take the other one, which changes the image around that position."""


class Fused(nn.Module):
    """The restorer as it is traced: the same parts, except the search of the nearest code.

    `vector-quantize-pytorch` branches on values of its buffers, which a graph cannot; the search here is the same
    formula.
    """

    def __init__(self, restorer: Restorer):
        super().__init__()
        self.codec, self.adapter, self.denoiser = restorer.codec, restorer.adapter, restorer.denoiser

    def forward(self, lq: Tensor) -> Tensor:
        """Map `lq [B, 3, R, R]` in [-1, 1] to `restored`, same shape, not clamped."""
        z_lq = self.codec.encode(lq)  # [B, C, R/f, R/f]
        z_aligned = self.adapter(z_lq)  # [B, C, R/f, R/f]
        return self.codec.decode(self.denoiser(z_aligned))  # [B, 3, R, R]


def save_onnx(
    restorer: Restorer,
    folder: str | Path,
    results: Sequence[str | Path] = (),
    licence: str | None = None,
    training_data: str | None = None,
    said: Callable[[str], object] = lambda step: None,
) -> float:
    """Write the graph and a model card, atomically.

    >>> from lafr import Restorer, save_onnx
    >>> difference = save_onnx(Restorer.from_pretrained("mini"), "graph")  # doctest: +SKIP

    Args:
        restorer: on the CPU, in float32; not changed.
        folder: new, empty or an earlier export, which is replaced.
        results, licence, training_data: for the card, as in `LAFRPipeline.save_pretrained`.
        said: called with the name of each step: trace, write, compare.

    Returns:
        the largest difference between onnxruntime and PyTorch on two random images, in [-1, 1].

    Raises InputError when a package of the extra `onnx` is missing or the folder holds something else.
    """
    require_packages()
    folder, records = Path(folder), read_results(results)
    require_free(folder)
    difference = float("nan")

    def fill(temporary: Path) -> None:
        nonlocal difference
        side = restorer.resolution
        lq = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
        write_graph(fused(restorer), lq, temporary / GRAPH, said)
        said("compare")
        with torch.no_grad():
            difference = (run_onnx(temporary / GRAPH, lq) - restorer(lq)).abs().max().item()
        usage = USAGE.format(graph=GRAPH, side=side, opset=OPSET, difference=difference)
        write_text(temporary / CARD, model_card(restorer, True, records, licence, training_data, usage))

    atomic_folder(folder, fill)
    return difference


def require_packages() -> None:
    """Raise InputError when a package of the extra `onnx` is missing."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, EXTRA)


def write_graph(restorer: Restorer, lq: Tensor, path: Path, said: Callable[[str], object]) -> None:
    """Trace a restorer without LoRA at `lq`'s size, for any batch, and write the graph."""
    model = Fused(restorer).requires_grad_(False).eval()
    said("trace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on parts of the quantiser that are not used
        program = torch.onnx.export(
            model,
            (lq,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["lq"],
            output_names=["restored"],
            dynamic_shapes={"lq": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    said("write")
    size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    program.save(path, external_data=size > ONE_FILE)


def run_onnx(path: Path, lq: Tensor) -> Tensor:
    """Return what the graph makes of `lq [B, 3, R, R]` in onnxruntime, on the CPU."""
    onnxruntime = need("onnxruntime", EXTRA)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["restored"], {"lq": lq.numpy()})[0])
