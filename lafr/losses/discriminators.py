"""Discriminators: real or restored? Each returns scores of places `[B, ...]`, above 0 for real.

`reads` names what it is shown: latents, which cost no decoding, or images. Built by a seed, whatever the global random
state.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from peft import LoraConfig
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.losses.multilevel import Restoration
from lafr.models.base.model import Base
from lafr.models.lora import LORA_TARGETS
from lafr.networks.recognisers import CLIP_MEAN, CLIP_STD, transformers_model

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Discriminator(nn.Module):
    """Scores of latents or images. `reads` is "latents" or "images"."""

    reads = "latents"

    def pair(self, r: Restoration) -> tuple[Tensor, Tensor]:
        """Return what it is shown of the ground truth and of the restored face."""
        return (r.z_hq, r.z_restored) if self.reads == "latents" else (r.hq, r.restored)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return what it learns."""
        return list(self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Return scores `[B, ...]`."""
        raise NotImplementedError


class ConvolutionalDiscriminator(Discriminator):
    """A patch discriminator of latents (pix2pix, Isola et al., CVPR 2017): the miniature's.

    Args:
        channels: of the latents.
        width: of the first layer; it doubles with each halving of the side, to four times.
        halvings: of the side.
        seed: of its weights.
    """

    def __init__(self, channels: int = 4, width: int = 32, halvings: int = 2, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            # the generator is forked: building a discriminator must not change the random numbers of the run
            widths = [width * min(2**i, 4) for i in range(halvings + 1)]
            layers = [nn.Conv2d(channels, width, 3, 1, 1), nn.LeakyReLU(0.2)]
            for inputs, outputs in pairwise(widths):
                # groups, not batches: two processes must compute what one does
                layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.GroupNorm(8, outputs), nn.LeakyReLU(0.2)]
            self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, channels, h, w]` to scores `[B, 1, h / 2^halvings, w / 2^halvings]`."""
        return self.layers(x.float())


class UNetEncoderDiscriminator(Discriminator):
    """The base UNet's encoder with a LoRA and a head: it has seen what latents of images are (D3SR; OSDFace).

    Args:
        base: with its null embedding; its UNet keeps text and time, and its encoder is copied.
        rank: of the LoRA.
        timestep: at which it reads a latent, without noise; 0 is a clean one.
        seed: of LoRA and head.
    """

    def __init__(self, base: Base, rank: int = 4, timestep: int = 0, seed: int = 0):
        super().__init__()
        unet = copy.copy(base.unet)
        # the decoder is left out before the copy: it holds more than half of the weights
        unet._modules = {name: part for name, part in unet._modules.items() if name not in DECODER}
        # a copy of its own: the restorer's UNet is pruned in place, and has a LoRA of its own
        self.unet = copy.deepcopy(unet).requires_grad_(False)
        self.timestep = timestep
        # not persistent: the checkpoint holds what was trained, the base has this
        self.register_buffer("null_embedding", base.null_condition(), persistent=False)
        width, groups = base.unet.config.block_out_channels[-1], base.unet.config.norm_num_groups
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            config = LoraConfig(r=rank, target_modules=list(LORA_TARGETS), init_lora_weights="gaussian")
            self.unet.add_adapter(config)
            head = [nn.GroupNorm(groups, width), nn.SiLU(), nn.Conv2d(width, 1, 3, 1, 1)]
            self.head = nn.Sequential(*head)

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return LoRA and head."""
        lora = [value for name, value in self.unet.named_parameters() if ".lora_" in name]
        return [*lora, *self.head.parameters()]

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, h, w]` to scores `[B, 1, h / f, w / f]`, f the UNet's downscale factor."""
        unet, text = self.unet, self.null_embedding.expand(len(x), -1, -1)
        t = torch.full((len(x),), self.timestep, device=x.device)
        # diffusers' UNet forward as far as the middle block: it has no entry point of its own
        time = unet.time_embedding(unet.time_proj(t).to(x.dtype))
        y = unet.conv_in(x)
        for block in unet.down_blocks:
            condition = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            y, _ = block(hidden_states=y, temb=time, **condition)  # the skips belong to the decoder
        if unet.mid_block is not None:
            y = unet.mid_block(y, time, encoder_hidden_states=text)
        return self.head(y)


DECODER = ("up_blocks", "conv_norm_out", "conv_act", "conv_out")


class FeatureDiscriminator(Discriminator):
    """Heads on a frozen vision transformer's features of the image (Projected GANs, Sauer et al., NeurIPS 2021).

    Args:
        folder: of a DINOv2 or CLIP model, or its Hugging Face repository, such as `facebook/dinov2-small` (Apache-2.0).
        layers: whose tokens are judged, 1 the first; the last is `num_hidden_layers`.
        size: side in pixels at which the model reads the image; CLIP's own is fixed.
        width: of the heads.
        seed: of the heads.
    """

    reads = "images"

    def __init__(
        self, folder: str, layers: Sequence[int] = (3, 6, 9, 12), size: int = 224, width: int = 128, seed: int = 0
    ):
        super().__init__()
        self.features, statistics = self.vision(folder)
        # saved with the model: metrics by this network are marked
        self.origins = frozenset({f"{self.features.config.model_type}:{folder}"})
        config = self.features.config
        wrong = [layer for layer in layers if not 0 < layer <= config.num_hidden_layers]
        if wrong or not layers:
            raise InputError("FeatureDiscriminator.layers", wrong, f"from 1 to {config.num_hidden_layers}")
        self.layers, self.size = tuple(layers), config.image_size if "clip" in config.model_type else size
        for name, value in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(value)[:, None, None], persistent=False)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                nn.Sequential(nn.Linear(config.hidden_size, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
                for _ in layers
            )

    @staticmethod
    def vision(folder: str) -> tuple[nn.Module, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Return a frozen DINOv2 or CLIP vision model and the mean and deviation of its pixels.

        Raises InputError when it cannot be had, or is another kind of model.
        """
        from transformers import AutoConfig, CLIPVisionModel, Dinov2Model

        what = "a DINOv2 or CLIP model"
        try:
            kind = AutoConfig.from_pretrained(folder).model_type
        except (OSError, ValueError):
            raise InputError("folder", folder, f"a folder or repository that holds {what}") from None
        if kind == "dinov2":
            return transformers_model(Dinov2Model, folder, what), (IMAGENET_MEAN, IMAGENET_STD)
        if kind.startswith("clip"):
            return transformers_model(CLIPVisionModel, folder, what), (CLIP_MEAN, CLIP_STD)
        raise InputError("folder", folder, f"of {what}, not {kind}")

    def trained_parameters(self) -> list[nn.Parameter]:
        """Return the heads."""
        return list(self.heads.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, 3, H, W]` in [-1, 1] to scores `[B, layers, tokens]`."""
        # [0, 1] at the transformer's own size; not clamped, as a clamped value has no gradient
        unit = F.interpolate(
            (x.float() + 1) / 2, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        )
        seen = self.features(pixel_values=(unit - self.mean) / self.std, output_hidden_states=True).hidden_states
        # hidden_states[0] is the embedding; token 0 stands for the whole image
        tokens = [F.layer_norm(seen[layer][:, 1:], seen[layer].shape[-1:]) for layer in self.layers]
        return torch.cat([head(part).transpose(1, 2) for head, part in zip(self.heads, tokens, strict=True)], 1)
