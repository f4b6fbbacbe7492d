"""Distribution: variational score distillation, which pulls restored latents to the base model's distribution."""

import copy

import torch
import torch.nn.functional as F
from diffusers.utils import scale_lora_layers, unscale_lora_layers
from peft import LoraConfig
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.losses.learned import LearnedTerm, seeded_noise
from lafr.losses.multilevel import Restoration
from lafr.models.base.model import Base
from lafr.models.lora import LORA_TARGETS


class NoisePrediction(nn.Module):
    """A base model's noise schedule and its UNet with the empty prompt.

    Classifier-free guidance has no effect on the empty prompt: its scale and second pass are omitted.
    Raises InputError for a base without a null embedding.
    """

    def __init__(self, base: Base):
        super().__init__()
        self.register_buffer("null_embedding", base.null_condition(), persistent=False)
        self.register_buffer("alphas_cumprod", base.scheduler.alphas_cumprod.clone(), persistent=False)

    def noise_in(self, unet: nn.Module, z_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that a UNet predicts in `z_t [B, C, h, w]` at times `t [B]`, with the empty prompt."""
        return unet(z_t, t, self.null_embedding.expand(len(z_t), -1, -1)).sample.float()

    def clean(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the clean latent that `z_t` and its noise `eps` imply."""
        abar = self.alphas_cumprod[t][:, None, None, None]
        return (z_t.float() - (1 - abar).sqrt() * eps) / abar.sqrt()  # DDPM, Eq. 15

    def noised(self, z: Tensor, n: Tensor, low: int, high: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `z_t`, its noise and its times in `low` .. `high` - 1, drawn from (seed, pair number)."""
        noise = seeded_noise(z, n, seed)
        # times by a low-discrepancy sequence, as in the miniature's prior
        times = [low + int((number * 0.6180339887 + seed * 0.7548776662) % 1 * (high - low)) for number in n.tolist()]
        t = torch.tensor(times).to(z.device)
        abar = self.alphas_cumprod[t][:, None, None, None]
        return abar.sqrt() * z + (1 - abar).sqrt() * noise, noise, t  # DDPM, Eq. 4


class ScoreDistillation(LearnedTerm):
    """Variational score distillation (Wang et al., NeurIPS 2023), the regulariser of OSEDiff (Wu et al., NeurIPS 2024).

    It compares the base model's UNet with itself and a LoRA that follows the distribution of the restored latents. They
    share their frozen weights. Its value is half the mean square of the normalised difference of the two scores: zero
    while they agree, whatever the image.

    Args:
        base: with its null embedding; its UNet keeps text and time, and is copied.
        rank: of the LoRA.
        learning_rate: of the LoRA's AdamW.
        low, high: times of the comparison, `low` .. `high` - 1.
        seed: of starts, times and noise.
    """

    sees_latents_only = True

    def __init__(
        self, base: Base, rank: int = 4, learning_rate: float = 5e-5, low: int = 20, high: int = 980, seed: int = 0
    ):
        super().__init__(learning_rate)
        if not 0 <= low < high <= len(base.scheduler.alphas_cumprod):
            steps = len(base.scheduler.alphas_cumprod)
            raise InputError(f"the distillation's times low={low} and high={high} are not 0 <= low < high <= {steps}")
        self.low, self.high, self.seed = low, high, seed
        self.prediction = NoisePrediction(base)
        self.unet = copy.deepcopy(base.unet).requires_grad_(False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, target_modules=list(LORA_TARGETS), init_lora_weights="gaussian")
            self.unet.add_adapter(config)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the LoRA's weights."""
        return [value for name, value in self.unet.named_parameters() if ".lora_" in name]

    def fixed(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that the base model predicts; without gradient."""
        # without its LoRA the UNet is the base's own: one UNet in memory instead of two
        scale_lora_layers(self.unet, 0)
        try:
            with torch.no_grad():
                return self.prediction.noise_in(self.unet, z_t, t)
        finally:
            unscale_lora_layers(self.unet, 0)

    def following(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that the UNet of the restored latents' distribution predicts."""
        return self.prediction.noise_in(self.unet, z_t, t)

    def forward(self, r: Restoration) -> Tensor:
        """Return a scalar whose gradient by `z_restored` is that of the distillation.

        The gradient is (z0 of the following UNet - z0 of the base's) / mean |z - z0 of the base's| (DMD, Yin et al.,
        CVPR 2024), divided by the number of values.
        """
        z = r.z_restored
        self.remember(z, r.n)
        with torch.no_grad():
            z_t, _, t = self.prediction.noised(z, r.n, self.low, self.high, 2 * self.seed)
            # x0 predictions instead of eps: their difference is the score's up to a factor of t
            real = self.prediction.clean(z_t, self.fixed(z_t, t), t)
            own = self.prediction.clean(z_t, self.following(z_t, t), t)
            # DMD normalises by the mean over C, h, w of each sample: every time counts alike
            direction = (own - real) / (z - real).abs().mean((1, 2, 3), keepdim=True)
        return 0.5 * F.mse_loss(z, (z - direction).detach())  # its gradient by z is direction / z.numel()

    def own_loss(self, z: Tensor, n: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the error of the following UNet's noise on restored latents (DDPM, Eq. 14)."""
        # all times, other noise (an odd seed) than in the comparison, which must not see what was fitted
        z_t, noise, t = self.prediction.noised(z, n, 0, len(self.prediction.alphas_cumprod), 2 * self.seed + 1)
        return F.mse_loss(self.following(z_t, t), noise), {}
