"""FLOPs and peak memory of a computation, estimated with fake tensors: shapes without values, on any machine."""

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    FlopCounterMode,
    flop_registry,
    register_flop_formula,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from lafr.models.codec import Codec
from lafr.training.objectives import Batch, CodebookObjective, Objective

aten = torch.ops.aten


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu, get_raw=True)
def attention_flop(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Return the operations of fused attention on fake CPU tensors, which torch's own table lacks."""
    return sdpa_flop_count(query.shape, key.shape, value.shape)


@register_flop_formula(aten._scaled_dot_product_flash_attention_for_cpu_backward, get_raw=True)
def attention_backward_flop(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Return the operations of its gradient, which computes the scores again."""
    return sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape)


@dataclass(frozen=True)
class Count:
    """Floating-point operations of convolutions, products and attention, and the peak of tensors' bytes.

    `float32_operations` are those of `operations` that autocast leaves in float32.
    """

    operations: int
    peak_bytes: int
    float32_operations: int = 0


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all live tensors, `peak` is their maximum; and the operations whose result is float32.

    An operator's workspace, the allocator's rounding and the runtime's own memory are not tensors and not counted: a
    device needs more than this.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak, self.float32 = 0, 0, 0
        self._known: set[int] = set()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()  # views share it
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            # autograd frees activations during the backward pass: only the storage itself knows when
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        # every operator of forward, backward and optimiser passes here
        out = operator(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for leaf in made:
            self.hold(leaf)
        kind = operator._overloadpacket
        if kind in flop_registry and made and made[0].dtype == torch.float32:
            self.float32 += flop_registry[kind](*args, **(kwargs or {}), out_val=out)
        return out


def count(module: nn.Module, work: Callable[[], object], operations: bool = True) -> Count:
    """Count `work`, which calls `module` on the CPU, without computing it; `operations=False` takes half the time.

    torch's counter of operations hooks every module, and tensors then live longer in steps with several networks (a
    third more for OSEDiff's loss): take the peak from a count without operations.

    The module's tensors (build it under `torch.device("meta")`) are replaced by fake ones, and are part of the peak.
    Tensors that `work` makes are fake too: it must not depend on their values.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # in place of each parameter and buffer one of the same shape, made under the fake mode
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    hollow = torch.empty(value.shape, dtype=value.dtype)
                    part._parameters[name] = nn.Parameter(hollow, requires_grad=value.requires_grad)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        # weights are alive from the start, then activations and gradients come and go
        memory = LiveBytes()
        for tensor in (*module.parameters(), *module.buffers()):
            memory.hold(tensor)
        counter = FlopCounterMode(display=False)
        with counter if operations else nullcontext(), memory:
            work()
    return Count(counter.get_total_flops() if operations else 0, memory.peak, memory.float32)


class Numbers(list):
    """Pair numbers that stay numbers where tensors hold no values."""

    def tolist(self) -> list[int]:
        """Return the numbers, as a tensor's `tolist` would."""
        return list(self)


def optimiser_step(
    objective: Objective, batch: Batch, mixed_precision: str = "no"
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    """Return a function that makes one optimiser step on `batch`, and the optimiser."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    # a learning rate that moves nothing: the step is counted or timed, not learned from
    optimizer = torch.optim.AdamW(parameters, lr=1e-6)

    def step() -> None:
        with low_precision(batch, mixed_precision):
            objective.before_step([batch], 0, lambda tensor: tensor)
            loss = objective.total(objective(batch))
        # outside autocast, as PyTorch recommends: the backward pass takes the forward's precisions
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.after_step(0, lambda tensor: tensor)

    return step, optimizer


def low_precision(batch: Batch, mixed_precision: str) -> torch.autocast:
    """Return the context of a step's precision: "no", "bf16" or "fp16"."""
    kind = torch.float16 if mixed_precision == "fp16" else torch.bfloat16
    return torch.autocast(batch["lq"].device.type, kind, enabled=mixed_precision != "no")


def empty_batch(faces: int, resolution: int, codec: Codec | None = None) -> dict:
    """Return a batch whose images hold no values; with z_hq, which the stream has cached, where a codec is given."""
    images = {key: torch.empty(faces, 3, resolution, resolution) for key in ("lq", "hq")}
    if codec is not None:
        side = resolution // codec.downscale
        images["z_hq"] = torch.empty(faces, codec.latent_channels, side, side)
    return images | {"n": Numbers(range(faces))}


def count_step(
    objective: Objective,
    faces: int,
    resolution: int,
    mixed_precision: str = "no",
    operations: bool = True,
    cached_latents: bool = False,
) -> Count:
    """Count an optimiser step of `faces` faces at a time; nothing is run.

    The objective lies on the meta device, its codes marked by `without_values`.
    """
    codec = objective.codec if cached_latents else None

    def step() -> None:
        optimiser_step(objective.train(), empty_batch(faces, resolution, codec), mixed_precision)[0]()

    return count(objective, step, operations)


def count_stage(
    objective: Objective, faces: int, resolution: int, mixed_precision: str = "no", operations: bool = True
) -> dict[str, Count]:
    """Count an optimiser step ("step") and a batch of validation ("validation"), as `count_step` does."""

    def validation() -> None:
        objective.eval()
        images = empty_batch(faces, resolution)
        with torch.no_grad(), low_precision(images, mixed_precision):
            objective(images)
            objective.restore(images)

    step = count_step(objective, faces, resolution, mixed_precision, operations)
    return {"step": step, "validation": count(objective, validation, operations=False)}


def without_values(objective: Objective) -> Objective:
    """Prepare an objective on the meta device for counting: its codes count as initialised, and are not moved."""
    for layer in objective.modules():
        if "initted" in getattr(layer, "_buffers", {}):  # vector-quantize-pytorch asks its value
            del layer._buffers["initted"]
            layer.initted = True
    if isinstance(objective, CodebookObjective):
        setattr(objective, "after_step", lambda *_: None)  # noqa: B010 (a method: moves codes, no product to count)
    return objective
