"""Signals that ask a training run to stop: it saves after the running step, on every process, before it ends."""

import signal
from typing import Any

import torch
from accelerate import Accelerator

from lafr.errors import Stopped

# Ctrl-C; a scheduler's end of time; its warnings (submitit's is SIGUSR2)
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class StopSignals:
    """Within `with StopSignals() as stop`, a signal raises `Stopped`: at once, or in a stage after its running step.

    A handler that another library has installed (submitit's, which submits the job again) is called first; the run goes
    on where it returns. A second Ctrl-C acts at once.
    """

    def __init__(self) -> None:
        self.deferred = False  # set while a stage trains
        self.number: int | None = None  # of the signal that came
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._note)
            except ValueError:  # not in the main thread, which alone gets signals
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        second = self.number == number
        self.number = number
        if second and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.deferred:
            self.obey("")

    def asked(self, accelerator: Accelerator) -> bool:
        """Return whether a signal came to any process: all must save, and leave the loop, after the same step."""
        if accelerator.num_processes > 1:
            number = torch.tensor(self.number or 0, device=accelerator.device)
            torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX)
            self.number = int(number) or None
        return self.number is not None

    def obey(self, saved: str) -> None:
        """Raise `Stopped` if a signal came, unless a handler from before takes it; `saved` says what was done."""
        if self.number is None:
            return
        number, before = self.number, self._before.get(self.number)
        if callable(before) and before is not signal.default_int_handler:
            self.number = None
            before(number, None)
            return
        done = f"; {saved}" if saved else ""
        raise Stopped(f"stopped by {signal.Signals(number).name}{done}; run the same command again to resume")
