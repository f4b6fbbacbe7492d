"""How far the latents are from the ground truth's, and which codes are in use, noted batch by batch."""

from collections.abc import Sequence

import numpy as np
import torch

from lafr.evaluation.cache_keys import of_restorer
from lafr.evaluation.ledger import Ledger
from lafr.evaluation.rows import Batch
from lafr.metrics.codebook import CodeUse
from lafr.storage import sha256_of_tensors, sha256_of_values

GAPS = {"latent_gap_before": "z_lq", "latent_gap_after": "z_aligned", "latent_gap_restored": "z_restored"}


class LatentNumbers:
    """Mean absolute differences to z_hq before and after the adapter and after the UNet, and the use of the codes.

    Without a ground truth only the codes of the LQ side are counted.
    """

    def __init__(self, restorer, ledger: Ledger, fidelity: float = 0.0):
        self.restorer, self.ledger, self.fidelity = restorer, ledger, fidelity
        self.made_by = sha256_of_values(of_restorer(restorer), float(fidelity))
        self.known: dict[int, dict] = {}

    def take(self, lines: Sequence[dict]) -> None:
        """Take in what all processes noted."""
        self.known = {line["latents"]: line for line in lines if "latents" in line}

    def measure(self, batch: Batch) -> None:
        """Note the numbers of `batch`, unless they are there."""
        images = {"lq": batch.lq} | ({} if batch.hq is None else {"hq": batch.hq})
        line = {"latents": batch.number, "made_of": sha256_of_values(self.made_by, sha256_of_tensors(images))}
        known = self.known.get(batch.number)
        if known is not None and known["made_of"] == line["made_of"]:
            return
        latents = self.restorer.latents(batch.lq, *([self.fidelity] if self.fidelity else []))
        z_hq = None if batch.hq is None else self.restorer.codec.encode(batch.hq)
        gaps = {} if z_hq is None else {
            name: (getattr(latents, z) - z_hq).abs().mean((1, 2, 3)).tolist() for name, z in GAPS.items()
        }  # fmt: skip
        use = CodeUse(self.restorer.adapter)
        use.add(latents.z_lq, latents.z_lq if z_hq is None else z_hq)
        codes = {side: [sparse(counts) for counts in layers] for side, layers in use.counts.items()}
        self.known[batch.number] = line | {"gaps": gaps, "codes": codes}
        self.ledger.note(self.known[batch.number])

    def summary(self, batches: int, has_truth: bool) -> dict[str, float]:
        """Return the numbers of the whole set."""
        lines = [self.known[number] for number in range(batches)]
        gaps = {name: float(np.mean([g for line in lines for g in line["gaps"][name]])) for name in GAPS if has_truth}
        use = CodeUse(self.restorer.adapter)
        for line in lines:
            for side, layers in line["codes"].items():
                for counts, (codes, times) in zip(use.counts[side], layers, strict=True):
                    counts[codes] += torch.tensor(times)
        return gaps | {k: v for k, v in use.summary().items() if has_truth or k.endswith("_lq")}


def sparse(counts: torch.Tensor) -> tuple[list[int], list[float]]:
    """Return the codes that were matched, and how often."""
    codes = counts.nonzero().flatten()
    return codes.tolist(), counts[codes].tolist()
