"""Validation during training: loss terms, PSNR and a picture, on held-out faces under fixed degradations."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lafr.images import write_image
from lafr.metrics.fidelity import psnr_rgb


class Validation:
    """Callable (objective, step) -> named means over the first `num_images` held-out faces.

    Face i is degraded by the generator (seed, 2, i): the same input at every step and in every run.
    Writes `step_N.png` with rows LQ | restored | HQ of the first six faces into `folder`.
    """

    def __init__(
        self,
        faces: Sequence[Tensor],
        degradation: Callable[[Tensor, np.random.Generator], Tensor],
        folder: str | Path,
        device: torch.device,
        seed: int = 0,
        num_images: int = 32,
        batch_size: int = 8,
    ):
        self.folder, self.device, self.batch_size = Path(folder), device, batch_size
        count = min(num_images, len(faces))
        hq = [faces[i] for i in range(count)]
        lq = [degradation(face, np.random.default_rng([seed, 2, i])) for i, face in enumerate(hq)]
        self.hq, self.lq = torch.stack(hq), torch.stack(lq)

    def __call__(self, objective, step: int) -> dict[str, float]:
        """Return the means and write the picture."""
        sums: dict[str, float] = {}
        shown: list[Tensor] = []
        for start in range(0, len(self.hq), self.batch_size):
            part = slice(start, start + self.batch_size)
            hq, lq = self.hq[part].to(self.device), self.lq[part].to(self.device)
            batch = {"hq": hq, "lq": lq, "n": torch.arange(len(self.hq))[part]}
            measured = objective(batch)
            restored = objective.restore(batch)
            if restored is not None:
                measured["psnr_rgb"] = psnr_rgb(restored, hq).mean()
                shown += list(restored.cpu())
            for name, value in measured.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(hq)
        if shown:
            rows = [torch.cat([lq, out, hq], dim=1) for lq, out, hq in zip(self.lq, shown, self.hq, strict=True)]
            write_image(torch.cat(rows[:6], dim=2), self.folder / f"step_{step:08d}.png")
        return {name: total / len(self.hq) for name, total in sums.items()}
