"""The methods that LAFR replaces, as objectives for the same loop: what its savings are measured against.

They are here to measure the cost of a step. None was trained to convergence.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn

from lafr.losses.multilevel import MultiLevelLoss, Restoration
from lafr.models.denoiser import LORA_TARGETS
from lafr.training.objectives import Batch, Gather, Objective, RestorationObjective, hq_latents, seeded_noise

ENCODER_TARGETS = r"encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_q|to_k|to_v|to_out\.0)"


class EncoderObjective(RestorationObjective):
    """Fine-tuning the whole VAE encoder with the UNet's LoRA, under the same loss: no adapter is needed.

    `z_hq` remains the original encoder's; give a restorer without an adapter (kind "none"), whose
    encoder no stage trained yet. From then on the restorer is saved whole: its base holds another encoder.
    """

    def __init__(self, restorer, loss: MultiLevelLoss):
        super().__init__(restorer, loss)
        restorer.base = None
        vae = restorer.codec.vae
        self.original = copy.deepcopy(restorer.codec)
        self.original.vae.decoder = vae.decoder  # shared: it is frozen
        for part in (vae.encoder, vae.quant_conv):
            if part is not None:
                part.requires_grad_(True)

    @property
    def codec(self) -> nn.Module:
        """The codec before training, which made z_hq."""
        return self.original


class FullUNetObjective(RestorationObjective):
    """Fine-tuning all of the pruned UNet instead of a LoRA; an existing LoRA is merged first.

    The restorer is saved whole from then on, as the base holds another UNet.
    """

    def __init__(self, restorer, loss: MultiLevelLoss):
        restorer.denoiser.merge_lora()
        super().__init__(restorer, loss)
        restorer.base = None
        restorer.denoiser.unet.requires_grad_(True)


class ScratchUNetObjective(FullUNetObjective):
    """Training all of the pruned UNet from random weights, drawn by `seed`: what is the pretrained prior worth?"""

    def __init__(self, restorer, loss: MultiLevelLoss, seed: int = 0):
        super().__init__(restorer, loss)
        restart(restorer.denoiser.unet, seed)


def restart(network: nn.Module, seed: int) -> None:
    """Reinitialise every layer in place with torch's default initialisation."""
    with torch.random.fork_rng():  # the global random state is unchanged
        torch.manual_seed(seed)
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()


class OSEDiffObjective(Objective):
    """OSEDiff (Wu et al., NeurIPS 2024): LoRAs in VAE encoder and UNet, variational score distillation as regulariser.

    The distillation compares a frozen UNet with one whose LoRA is fitted to the distribution of the restored latents.
    The latter has an optimiser of its own, stepped in `after_step`, which checkpoints do not hold. Both have the empty
    prompt, so classifier-free guidance has no effect: its scale (7.5 in their code) and second pass are omitted, and so
    is the tagger that writes their prompts. Encoding takes the posterior's mode, as elsewhere in LAFR.

    Args:
        base: a `lafr.models.base.model.Base`; its UNet keeps text and time.
        loss: of the restored face, as in `RestorationObjective`; `vsd` is added with weight 1.
        rank: of the three LoRAs.
        timestep: of the one step, on the latent itself: no noise is added.
        learning_rate: of the regulariser's AdamW.
        seed: of starts, times and noise.
    """

    def __init__(
        self, base, loss: MultiLevelLoss, rank: int = 4, timestep: int = 999, learning_rate: float = 5e-5, seed: int = 0
    ):
        super().__init__()
        self.codec, self.loss, self.timestep, self.seed = base.codec(), loss, timestep, seed
        self.unet = base.unet.requires_grad_(False)
        self.fixed, self.following = copy.deepcopy(self.unet), copy.deepcopy(self.unet)
        self.register_buffer("null_embedding", base.null_embedding, persistent=False)
        self.register_buffer("alphas_cumprod", base.scheduler.alphas_cumprod.clone(), persistent=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            targets = list(LORA_TARGETS)
            for network, where in ((base.vae, ENCODER_TARGETS), (self.unet, targets), (self.following, targets)):
                network.add_adapter(LoraConfig(r=rank, target_modules=where, init_lora_weights="gaussian"))
        self.weights = loss.weights | {"vsd": 1.0}
        self.learning_rate = learning_rate
        self.optimizer: torch.optim.Optimizer | None = None
        self._seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss and vsd."""
        self.codec.vae.disable_adapters()  # z_hq is the frozen encoder's
        with torch.no_grad():
            z_hq = hq_latents(batch, self.codec)
        self.codec.vae.enable_adapters()
        z_lq = self.codec.encode(batch["lq"])  # [B, C, h, w]
        t = torch.full((len(z_lq),), self.timestep, device=z_lq.device)  # [B]
        z = self.clean(z_lq, self.noise_in(self.unet, z_lq, t), t)  # [B, C, h, w]
        restored = self.codec.decode(z)  # [B, 3, H, W]
        if torch.is_grad_enabled():
            self._seen.append((z.detach(), batch["n"]))
        return self.loss(Restoration(restored, batch["hq"], z, z_hq)) | {"vsd": self.distillation(z, batch["n"])}

    def noise_in(self, unet: nn.Module, z_t: Tensor, t: Tensor) -> Tensor:
        """Return the noise that a UNet predicts in `z_t [B, C, h, w]` at times `t [B]`, with the empty prompt."""
        return unet(z_t, t, self.null_embedding.expand(len(z_t), -1, -1)).sample.float()

    def clean(self, z_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the clean latent that `z_t` and its noise `eps` imply."""
        abar = self.alphas_cumprod[t][:, None, None, None]
        return (z_t.float() - (1 - abar).sqrt() * eps) / abar.sqrt()  # DDPM, Eq. 15

    def noised(self, z: Tensor, n: Tensor, low: int, high: int, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return `z_t`, its noise and its times in `low` .. `high` - 1, drawn from (seed, draw, n)."""
        seed = 2 * self.seed + draw
        noise = seeded_noise(z, n, seed)
        # times by a low-discrepancy sequence, as in the miniature's prior
        times = [low + int((number * 0.6180339887 + seed * 0.7548776662) % 1 * (high - low)) for number in n.tolist()]
        t = torch.tensor(times).to(z.device)
        abar = self.alphas_cumprod[t][:, None, None, None]
        return abar.sqrt() * z + (1 - abar).sqrt() * noise, noise, t  # DDPM, Eq. 4

    def distillation(self, z: Tensor, n: Tensor) -> Tensor:
        """Return a scalar whose gradient by `z` is that of variational score distillation (Wang et al., NeurIPS 2023).

        The gradient is (z0 of the following UNet - z0 of the frozen UNet) / mean |z - z0 of the frozen UNet| (DMD, Yin
        et al., CVPR 2024), divided by the number of values.
        """
        with torch.no_grad():
            z_t, _, t = self.noised(z, n, 20, 980, 0)
            real = self.clean(z_t, self.noise_in(self.fixed, z_t, t), t)
            own = self.clean(z_t, self.noise_in(self.following, z_t, t), t)
            direction = (own - real) / (z - real).abs().mean((1, 2, 3), keepdim=True)
        return 0.5 * F.mse_loss(z, (z - direction).detach())  # its gradient by z is direction / z.numel()

    def before_step(self, batches: Sequence[Batch], step: int, gather: Gather) -> None:
        """Drop what an interrupted step left."""
        self._seen.clear()

    def after_step(self, step: int, gather: Gather) -> None:
        """Fit the regulariser's LoRA: noise prediction (DDPM, Eq. 14) on the step's restored latents."""
        own = [p for p in self.following.parameters() if p.requires_grad]
        self.optimizer = self.optimizer or torch.optim.AdamW(own, lr=self.learning_rate, weight_decay=1e-2)
        for z, n in self._seen:
            z_t, noise, t = self.noised(z, n, 0, len(self.alphas_cumprod), 1)
            (F.mse_loss(self.noise_in(self.following, z_t, t), noise) / len(self._seen)).backward()
        self._seen.clear()
        nn.utils.clip_grad_norm_(own, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def restore(self, batch: Batch) -> Tensor:
        """Return the restored faces."""
        z_lq = self.codec.encode(batch["lq"])
        t = torch.full((len(z_lq),), self.timestep, device=z_lq.device)
        return self.codec.decode(self.clean(z_lq, self.noise_in(self.unet, z_lq, t), t))
