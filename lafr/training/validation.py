"""Validation during training: loss terms, PSNR and a picture, on held-out faces under fixed degradations."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lafr.images import write_image
from lafr.metrics.fidelity import psnr_rgb


class Validation:
    """Callable (objective, step) -> named means over the first `num_images` of `pairs`, the held-out items.

    Writes `step_N.png` with rows LQ | restored | HQ of the first six faces into `folder`.
    """

    def __init__(
        self,
        pairs: Sequence[dict[str, Tensor]],
        folder: str | Path,
        device: torch.device,
        num_images: int = 32,
        batch_size: int = 8,
    ):
        self.folder, self.device, self.batch_size = Path(folder), device, batch_size
        items = [pairs[i] for i in range(min(num_images, len(pairs)))]
        self.items = {key: torch.stack([item[key] for item in items]) for key in items[0]}

    def __call__(self, objective, step: int) -> dict[str, float]:
        """Return the means and write the picture."""
        sums: dict[str, float] = {}
        shown: list[Tensor] = []
        count = len(self.items["hq"])
        for start in range(0, count, self.batch_size):
            batch = {k: v[start : start + self.batch_size].to(self.device) for k, v in self.items.items()}
            measured = objective(batch)
            restored = objective.restore(batch)
            if restored is not None:
                measured["psnr_rgb"] = psnr_rgb(restored, batch["hq"]).mean()
                shown += list(restored.cpu())
            for name, value in measured.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch["hq"])
        if shown:
            rows = [
                torch.cat([lq, out, hq], dim=1)
                for lq, out, hq in zip(self.items["lq"], shown, self.items["hq"], strict=True)
            ]
            write_image(torch.cat(rows[:6], dim=2), self.folder / f"step_{step:08d}.png")
        return {name: total / count for name, total in sums.items()}
