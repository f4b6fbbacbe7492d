"""Distance of the latents from the ground truth's, and use of the codebook, logged batch by batch."""

from collections.abc import Sequence

import numpy as np
import torch

from lafr.evaluation.cache_keys import key_of_restorer
from lafr.evaluation.methods import Batch
from lafr.evaluation.progress import ProgressLog
from lafr.metrics.codebook import CodeUse
from lafr.models.restorer import Restorer, share_of_input
from lafr.storage import sha256_of_tensors, sha256_of_values

GAPS = {"latent_gap_before": "z_lq", "latent_gap_after": "z_aligned", "latent_gap_restored": "z_restored"}


class LatentNumbers:
    """Mean |z - z_hq| before the adapter, after it and after the UNet, and how often each code is matched.

    Without a ground truth only the codes matched by LQ latents are counted.
    """

    def __init__(self, restorer: Restorer, log: ProgressLog, fidelity: float = 0.0):
        self.restorer, self.log, self.fidelity = restorer, log, fidelity
        self.key = sha256_of_values(key_of_restorer(restorer), share_of_input(fidelity))
        self.known: dict[int, dict] = {}

    def load(self, lines: Sequence[dict]) -> None:
        """Take in the log of all processes."""
        self.known = {line["latents"]: line for line in lines if "latents" in line}

    def measure(self, batch: Batch) -> None:
        """Log the numbers of `batch`, unless they are there."""
        images = {"lq": batch.lq} | ({} if batch.hq is None else {"hq": batch.hq})
        line = {"latents": batch.number, "key": sha256_of_values(self.key, sha256_of_tensors(images))}
        known = self.known.get(batch.number)
        if known is not None and known["key"] == line["key"]:
            return
        latents = self.restorer.latents(batch.lq, *([self.fidelity] if self.fidelity else []))
        z_hq = None if batch.hq is None else self.restorer.codec.encode(batch.hq)
        gaps = {}
        if z_hq is not None:
            differences = {name: getattr(latents, z) - z_hq for name, z in GAPS.items()}  # [B, C, H/f, W/f]
            gaps = {name: difference.abs().mean((1, 2, 3)).tolist() for name, difference in differences.items()}
        use = CodeUse(self.restorer.adapter)
        use.add(latents.z_lq, latents.z_lq if z_hq is None else z_hq)
        codes = {side: list(map(sparse, layers)) for side, layers in use.counts.items()}
        self.known[batch.number] = line | {"gaps": gaps, "codes": codes}
        self.log.append(self.known[batch.number])

    def summary(self, batches: int, has_truth: bool) -> dict[str, float]:
        """Return the numbers of the whole set."""
        lines = [self.known[number] for number in range(batches)]
        gaps = {}
        for name in GAPS if has_truth else ():
            gaps[name] = float(np.mean(np.concatenate([line["gaps"][name] for line in lines])))
        use = CodeUse(self.restorer.adapter)
        for line in lines:
            for side, layers in line["codes"].items():
                for counts, (codes, times) in zip(use.counts[side], layers, strict=True):
                    counts[codes] += torch.tensor(times)
        return gaps | {k: v for k, v in use.summary().items() if has_truth or k.endswith("_lq")}


def sparse(counts: torch.Tensor) -> tuple[list[int], list[float]]:
    """Return the codes that were matched and their counts: a codebook is large, a batch matches few of its codes."""
    codes = counts.nonzero().flatten()
    return codes.tolist(), counts[codes].tolist()
