"""Objectives of the miniature's base model, its autoencoder and its diffusion prior, on HQ faces alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.data.faces.sources import FaceSet
from lafr.losses.learned import seeded_noise
from lafr.losses.multilevel import Restoration
from lafr.models.base.model import Base
from lafr.training.objectives import Batch, Objective, hq_latents


class CodecObjective(Objective):
    """Pretraining of the miniature's autoencoder on HQ faces: L1 + perceptual + KL of small weight.

    At full size the autoencoder is Stable Diffusion's and is not trained.
    """

    def __init__(self, base: Base, perceptual: nn.Module, weights: dict[str, float], seed: int = 0):
        super().__init__()
        self.vae, self.seed = base.vae.requires_grad_(True), seed
        self.perceptual = perceptual.requires_grad_(False)
        self.weights = dict(weights)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return pixel_l1, pixel_mse, perceptual and kl of the autoencoded HQ faces."""
        hq = batch["hq"]
        posterior = self.vae.encode(hq).latent_dist
        z = posterior.mean.float()
        if self.training:
            z = z + posterior.std.float() * seeded_noise(z, batch["n"], self.seed)  # reparametrisation: VAE, Eq. 10
        restored = self.vae.decode(z).sample
        r = Restoration(restored, hq, z, z)
        return {
            "pixel_l1": F.l1_loss(restored.float(), hq),
            "pixel_mse": F.mse_loss(restored.float(), hq),
            "perceptual": self.perceptual(r).float(),
            "kl": posterior.kl().float().mean() / z[0].numel(),  # diffusers sums over the latent: per value here
        }

    def restore(self, batch: Batch) -> Tensor:
        """Return the autoencoded HQ faces."""
        return self.vae.decode(self.vae.encode(batch["hq"]).latent_dist.mode()).sample

    @torch.no_grad()
    def finish(self, faces: FaceSet, device: torch.device) -> None:
        """Set the latent scale: 1 / standard deviation over (up to) 256 training faces (LDM, appendix G)."""
        some = [faces[i][None].to(device) for i in range(min(256, len(faces)))]  # [1, 3, R, R] each
        z = torch.cat([self.vae.encode(face).latent_dist.mode() for face in some])
        self.vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))


class PriorObjective(Objective):
    """Pretraining of the miniature's diffusion prior: eps-prediction on HQ latents (DDPM, Eq. 14).

    At full size the prior is Stable Diffusion's UNet. This one has its time embedding too, and cross-attention to a
    fixed null embedding. In validation the error is also reported at each of the times `PROBED`, with fixed noise.
    """

    weights = {"eps_mse": 1.0}  # noqa: RUF012
    PROBED = (50, 200, 399, 700)

    def __init__(self, base: Base, seed: int = 0):
        super().__init__()
        self.codec, self.unet, self.seed = base.codec(), base.unet.requires_grad_(True), seed
        self.register_buffer("null_embedding", base.null_condition(), persistent=False)
        self.register_buffer("alphas_cumprod", base.scheduler.alphas_cumprod, persistent=False)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return eps_mse, at a time and noise drawn from (seed, n); in validation also eps_mse_tT at `PROBED`."""
        z = hq_latents(batch, self.codec)  # [B, C, h, w]
        noise = seeded_noise(z, batch["n"], self.seed)
        # times by a low-discrepancy sequence: multiples of the golden ratio mod 1 fill [0, 1) evenly in any batch
        places = [(n * 0.6180339887 + self.seed * 0.7548776662) % 1 for n in batch["n"].tolist()]
        t = torch.tensor([place * len(self.alphas_cumprod) for place in places]).long()  # [B]
        terms = {"eps_mse": self.error(z, noise, t)}
        if not self.training:
            terms |= {f"eps_mse_t{time}": self.error(z, noise, torch.full_like(t, time)) for time in self.PROBED}
        return terms

    def error(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the mean squared error of the noise predicted in `z [B, C, h, w]` at times `t [B]`."""
        t = t.to(z.device)
        abar = self.alphas_cumprod[t][:, None, None, None]  # [B, 1, 1, 1]
        z_t = abar.sqrt() * z + (1 - abar).sqrt() * noise  # DDPM, Eq. 4
        eps = self.unet(z_t, t, self.null_embedding.expand(len(z), -1, -1)).sample
        return F.mse_loss(eps.float(), noise)
