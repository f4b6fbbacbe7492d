"""What a piece of work would cost at a size that is not at hand: counted on tensors that have shapes and no values."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Count:
    """Floating-point operations of convolutions, products and attention; bytes of tensors alive at most."""

    operations: int
    peak_bytes: int


class LiveBytes(TorchDispatchMode):
    """Adds up the bytes of all tensors alive; `peak` is the most there were at once.

    What an operator needs inside (a convolution's workspace), an allocator's rounding and a runtime's own memory are
    not tensors and not counted: a device needs more than this.
    """

    def __init__(self):
        super().__init__()
        self.live, self.peak, self._known = 0, 0, set()

    def hold(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.hold(leaf)
        return out


def count(module: nn.Module, work: Callable[[], object]) -> Count:
    """Count `work`, which calls `module` on the CPU, without running it.

    The module's tensors (build it under `torch.device("meta")`) are replaced by ones that hold no values, and are part
    of the peak; tensors that `work` makes hold none either, so it may not look at one.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    hollow = torch.empty(value.shape, dtype=value.dtype)
                    part._parameters[name] = nn.Parameter(hollow, requires_grad=value.requires_grad)
            for name, value in part._buffers.items():
                if value is not None:
                    part._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        memory = LiveBytes()
        for tensor in (*module.parameters(), *module.buffers()):
            memory.hold(tensor)
        with FlopCounterMode(display=False) as operations, memory:
            work()
    return Count(operations.get_total_flops(), memory.peak)
