"""Adversarial: the restored face should look, to a discriminator that learns along, like a ground truth."""

import torch.nn.functional as F
from torch import Tensor, nn

from lafr.errors import InputError, require_whole, setting
from lafr.losses.discriminators import Discriminator
from lafr.losses.learned import LearnedTerm, seeded_noise
from lafr.losses.multilevel import Restoration


class Adversarial(LearnedTerm):
    """Hinge loss (Lim & Ye, 2017) against a discriminator, which is regularised by R1.

    R1, the mean squared gradient of real samples' scores (Mescheder et al., ICML 2018), is estimated by the difference
    of the scores of a sample and a noisy copy (Seaweed-APT, Lin et al., 2025): no second derivative is needed.

    Args:
        discriminator: of latents or of decoded images.
        learning_rate: of the discriminator's AdamW.
        r1: weight of the regularisation; 0 for none.
        r1_sigma: standard deviation of that noise.
        warmup: updates of the discriminator over which the term's gradient rises from 0; its value is reported whole.
        seed: of the noise.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        learning_rate: float = 1e-4,
        r1: float = 1.0,
        r1_sigma: float = 0.1,
        warmup: int = 0,
        seed: int = 0,
    ):
        super().__init__(learning_rate)
        require_whole(0, **{"Adversarial.warmup": warmup})
        if not 0 <= r1 < float("inf"):
            raise InputError("Adversarial.r1", r1, "a number, 0 or more")
        if not 0 < r1_sigma < float("inf"):  # it divides: at 0 the discriminator would become NaN
            without = f"{setting('Adversarial.r1', 0)} leaves the penalty out"
            raise InputError("Adversarial.r1_sigma", r1_sigma, "a number above 0", without)
        self.discriminator, self.r1, self.r1_sigma = discriminator, r1, r1_sigma
        self.warmup, self.seed = warmup, seed
        # then no face has to be decoded for this term
        self.sees_latents_only = discriminator.reads == "latents"

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what the discriminator learns."""
        return self.discriminator.trained_parameters()

    def forward(self, r: Restoration) -> Tensor:
        """Return minus the mean score of the restored faces: below 0 where they pass for real."""
        real, restored = self.discriminator.pair(r)
        # kept, detached: the discriminator learns after the step, from the same samples
        self.remember(real, restored, r.n)
        value = -self.discriminator(restored).float().mean()
        # a discriminator that has learned nothing yet has nothing to teach
        share = min(1.0, self.updates / self.warmup) if self.warmup else 1.0
        return value if share == 1 else share * value + (1 - share) * value.detach()

    def own_loss(self, real: Tensor, restored: Tensor, n: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the discriminator's hinge loss with R1, and its accuracy on real and on restored samples."""
        on_real, on_restored = self.discriminator(real).float(), self.discriminator(restored).float()
        # L = E[max(0, 1 - D(real))] + E[max(0, 1 + D(restored))]
        loss = F.relu(1 - on_real).mean() + F.relu(1 + on_restored).mean()
        numbers = {
            "accuracy_real": (on_real > 0).float().mean(),
            "accuracy_restored": (on_restored < 0).float().mean(),
        }
        if self.r1:
            numbers["r1"] = self.gradient_penalty(real, on_real, n)
            loss = loss + self.r1 * numbers["r1"]
        return loss, numbers

    def gradient_penalty(self, real: Tensor, scores: Tensor, n: Tensor) -> Tensor:
        """Return the mean over samples of ((D(x + sigma e) - D(x)) / sigma)^2, D the mean score, e white noise."""
        # E_e[(gradient . e)^2] = |gradient|^2. Other noise at each update: the pairs repeat.
        noise = seeded_noise(real, n, self.seed * 1_000_003 + self.updates)
        moved = self.discriminator(real + self.r1_sigma * noise).float()
        slope = (moved - scores).flatten(1).mean(1) / self.r1_sigma  # [B]
        return slope.square().mean()
