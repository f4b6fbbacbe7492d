"""Use of the codebook: perplexity and dead codes."""

import torch
from torch import Tensor, nn


class CodeUse:
    """Counts matched codes over a set; perplexity exp(H) is the number of codes in even use.

    Counted for the LQ side (what the restorer matches) and the HQ side (what the codebook was learned from). With
    several quantisers the numbers are means over them.
    """

    def __init__(self, adapter: nn.Module):
        self.adapter = adapter
        sizes = [layer.codebook_size for layer in adapter.quantizer.layers]
        self.counts = {side: list(map(torch.zeros, sizes)) for side in ("lq", "hq")}

    @torch.no_grad()
    def add(self, z_lq: Tensor, z_hq: Tensor) -> None:
        """Count the codes of two batches of latents."""
        if not self.counts["lq"]:  # an adapter without codes
            return
        quantizer = self.adapter.quantizer
        for side, z in (("lq", z_lq), ("hq", z_hq)):
            match = quantizer.assign if side == "lq" else quantizer.quantize
            indices = match(self.adapter.extract(z)).indices
            for counts, chosen in zip(self.counts[side], indices.flatten(0, 2).unbind(-1), strict=True):
                counts += torch.bincount(chosen.cpu(), minlength=len(counts))

    def summary(self) -> dict[str, float]:
        """Return codebook_perplexity_lq/_hq and dead_codes_lq/_hq; nothing for an adapter without codes."""
        summary = {}
        for side, layers in self.counts.items():
            if layers:
                perplexities = [perplexity(counts) for counts in layers]
                dead = [int((counts == 0).sum()) for counts in layers]
                summary[f"codebook_perplexity_{side}"] = sum(perplexities) / len(layers)
                summary[f"dead_codes_{side}"] = sum(dead) / len(layers)
        return summary


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of `counts [N]` as a distribution: 1 to N."""
    p = counts / counts.sum().clamp_min(1)
    # exp(-sum p log p); entr takes 0 log 0 as 0
    return float(torch.special.entr(p).sum().exp())
