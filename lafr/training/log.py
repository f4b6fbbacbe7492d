"""What a stage shows and records while it trains."""

import time
from collections.abc import Iterable

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from lafr.errors import InputError
from lafr.storage import JsonLines
from lafr.training.checkpoints import Checkpoints
from lafr.training.trackers import track, track_image, validation_image


class Log:
    """Progress bar, `log.jsonl`, `pairs.jsonl` and trackers of a stage.

    When a run resumes at `step`, both files are cut back to what they were when its checkpoint was saved: the steps
    after it are trained again.
    Trackers cannot be cut back; they keep what they have of these steps, which is the same, and get the rest
    (`lafr.training.trackers.complete`).

    Args:
        accelerator: holds the trackers.
        checkpoints: of the stage, whose folder holds the files.
        name: of the stage.
        step: that the stage starts or resumes at.
        max_steps: of the stage.
        batch_size: pairs per step.
        steps_before: of the stages before, added to the trackers' step: it rises over the whole run.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        name: str,
        step: int,
        max_steps: int,
        batch_size: int,
        steps_before: int = 0,
    ):
        self.folder, self.steps_before = checkpoints.folder, steps_before
        self.accelerator, self.name, self.batch_size = accelerator, name, batch_size
        self.tracked: set[tuple] = set()
        self.lines, self.pair_lines = (JsonLines(self.folder / file) for file in checkpoints.LOGS)
        self.started, self.first_step = time.perf_counter(), step
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.tracked = {(line.get("step"), *line) for line in self.lines.read()}  # before a kill
            # a killed run may have logged steps after its last checkpoint
            for text in checkpoints.cut_back_logs(step):
                accelerator.print(f"warning: {text}")
        hidden = not accelerator.is_main_process
        self.bar = tqdm(
            total=max_steps, initial=step, desc=name, unit="step", dynamic_ncols=True, mininterval=1, disable=hidden
        )

    def advance(self) -> None:
        """Move the progress bar by one step."""
        self.bar.update()

    def pairs(self, records: Iterable[dict]) -> None:
        """Record the random parameters of the pairs of a step, one JSON line per pair."""
        if self.accelerator.is_main_process:
            self.pair_lines.append(*records)

    def terms(
        self, step: int, terms: dict[str, float], learning_rate: float, norm: Tensor, written: bool = True
    ) -> None:
        """Show the loss terms; where they are `written`, log them, learning rate and gradient norm.

        Raises InputError when a loss or the gradient is not finite: the last checkpoint is from before it.
        """
        # images per second since this start, not over the run's earlier ones
        rate = (step - self.first_step) * self.batch_size / (time.perf_counter() - self.started)
        self.bar.set_postfix({k: f"{v:.4g}" for k, v in terms.items()} | {"img/s": f"{rate:.3g}"}, refresh=False)
        # written before the check: the log then shows the step that failed
        if written:
            self._write(step, terms | {"learning_rate": learning_rate, "grad_norm": float(norm)})
        # float16's gradient scaler expects overflows: it skips such a step and lowers its scale
        overflowed = self.accelerator.scaler is None and not norm.isfinite()
        if overflowed or not all(abs(v) < float("inf") for v in terms.values()):
            raise InputError(
                f"{self.name}: a loss or its gradient is not finite at step {step} ({terms})",
                remedy="lower the learning rate and run again",
            )

    def validation(self, step: int, measured: dict[str, float]) -> None:
        """Log and print validation numbers, if any."""
        if measured:
            named = {f"validation/{k}": v for k, v in measured.items()}
            # first: a kill in between then logs the image twice, not never
            if (step, "step", *named) not in self.tracked:
                image = validation_image(self.folder, step)
                track_image(self.accelerator, f"{self.name}/validation", image, self.steps_before + step)
            self._write(step, named)
            numbers = ", ".join(f"{k} {v:.4g}" for k, v in measured.items())
            if self.accelerator.is_main_process:
                # above the bar, where `print` would join its line
                self.bar.write(f"{self.name} step {step}: {numbers}")

    def _write(self, step: int, values: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            line = {"step": step, **values}
            if (step, *line) not in self.tracked:
                named = {f"{self.name}/{key}": value for key, value in values.items()}
                track(self.accelerator, named, self.steps_before + step)
            self.lines.append(line)

    def close(self) -> None:
        """Close the progress bar."""
        self.bar.close()
