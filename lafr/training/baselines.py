"""The methods that LAFR replaces, as objectives for the same loop: what its savings are measured against.

They are here to measure the cost of a step. None was trained to convergence.
"""

import copy

import torch
from peft import LoraConfig
from torch import Tensor, nn

from lafr.losses.distillation import NoisePrediction
from lafr.losses.multilevel import MultiLevelLoss, Restoration
from lafr.models.base.model import Base
from lafr.models.lora import LORA_TARGETS
from lafr.models.restorer import Latents, Restorer
from lafr.training.objectives import Batch, LossObjective, RestorationObjective, hq_latents

ENCODER_TARGETS = r"encoder\..*(conv1|conv2|conv_in|conv_shortcut|conv|conv_out|to_q|to_k|to_v|to_out\.0)"


class EncoderObjective(RestorationObjective):
    """Fine-tuning the whole VAE encoder with the UNet's LoRA, under the same loss: no adapter is needed.

    `z_hq` remains the original encoder's; give a restorer without an adapter (kind "none"), whose
    encoder no stage trained yet. From then on the restorer is saved whole: its base holds another encoder.
    """

    def __init__(self, restorer: Restorer, loss: MultiLevelLoss):
        super().__init__(restorer, loss)
        restorer.base = None
        vae = restorer.codec.vae
        self.original = copy.deepcopy(restorer.codec)
        self.original.vae.decoder = vae.decoder  # shared: it is frozen
        # the 1 x 1 convolution to the posterior's moments belongs to the encoder; some VAEs lack it
        for part in (vae.encoder, vae.quant_conv):
            if part is not None:
                part.requires_grad_(True)

    @property
    def codec(self) -> nn.Module:
        """The codec before training, which made z_hq."""
        return self.original

    def latents(self, batch: Batch) -> Latents:
        """Return every latent on the way from the LQ images; z_lq is never kept, as its encoder learns."""
        return self.restorer.latents(batch["lq"])


class FullUNetObjective(RestorationObjective):
    """Fine-tuning all of the pruned UNet instead of a LoRA; an existing LoRA is merged first.

    The restorer is saved whole from then on, as the base holds another UNet.
    """

    def __init__(self, restorer: Restorer, loss: MultiLevelLoss):
        restorer.denoiser.merge_lora()
        super().__init__(restorer, loss)
        restorer.base = None
        restorer.denoiser.unet.requires_grad_(True)


class ScratchUNetObjective(FullUNetObjective):
    """Training all of the pruned UNet from random weights, drawn by `seed`: what is the pretrained prior worth?"""

    def __init__(self, restorer: Restorer, loss: MultiLevelLoss, seed: int = 0):
        super().__init__(restorer, loss)
        # after the time was folded in: biases of the pruned UNet are restarted too
        restart(restorer.denoiser.unet, seed)


def restart(network: nn.Module, seed: int) -> None:
    """Reinitialise every layer in place with torch's default initialisation."""
    with torch.random.fork_rng():  # the global random state is unchanged
        torch.manual_seed(seed)
        for layer in network.modules():
            if hasattr(layer, "reset_parameters"):
                layer.reset_parameters()


class OSEDiffObjective(LossObjective):
    """OSEDiff (Wu et al., NeurIPS 2024): LoRAs in the VAE's encoder and the UNet, whose text and time it keeps.

    The loss is `loss=osediff`: variational score distillation is one of its terms (`lafr.losses.distillation`). The
    prompt is empty: the tagger that writes theirs is omitted. Encoding takes the posterior's mode, as elsewhere in
    LAFR.

    Args:
        base: a `lafr.models.base.model.Base`, with its null embedding.
        loss: of the restored face, as in `RestorationObjective`.
        rank: of both LoRAs.
        timestep: of the one step, on the latent itself: no noise is added.
        seed: of the LoRAs' starts.
    """

    def __init__(self, base: Base, loss: MultiLevelLoss, rank: int = 4, timestep: int = 999, seed: int = 0):
        super().__init__(loss)
        self.codec, self.timestep = base.codec(), timestep
        self.unet = base.unet.requires_grad_(False)
        self.prediction = NoisePrediction(base)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for network, where in ((base.vae, ENCODER_TARGETS), (self.unet, list(LORA_TARGETS))):
                network.add_adapter(LoraConfig(r=rank, target_modules=where, init_lora_weights="gaussian"))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        self.codec.vae.disable_adapters()  # z_hq is the frozen encoder's
        with torch.no_grad():
            z_hq = hq_latents(batch, self.codec)
        self.codec.vae.enable_adapters()
        z = self.latents(batch)  # [B, C, h, w]
        return self.loss(Restoration(self.codec.decode(z), batch["hq"], z, z_hq, batch["n"]))

    def latents(self, batch: Batch) -> Tensor:
        """Return the restored latents `[B, C, h, w]`."""
        # with gradient: the LoRA in the encoder learns from the loss on the restored face
        z_lq = self.codec.encode(batch["lq"])
        t = torch.full((len(z_lq),), self.timestep, device=z_lq.device)  # [B]
        return self.prediction.clean(z_lq, self.prediction.noise_in(self.unet, z_lq, t), t)

    def restore(self, batch: Batch) -> Tensor:
        """Return the restored faces."""
        return self.codec.decode(self.latents(batch))
