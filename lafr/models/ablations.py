"""What the paper's denoiser leaves out, put back or taken out for real: its controls, in the same form."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from lafr.errors import InputError
from lafr.models.adapter import Adapter
from lafr.models.base.model import Base
from lafr.models.denoiser import Denoiser
from lafr.models.folding import PromptAttention
from lafr.models.restorer import Restorer

TIME = ("folded", "deleted")
TEXT = ("none", "empty_prompt", "untouched")


def ablated(
    folder: str | Sequence[str],
    adapter: Adapter,
    resolution: int,
    timestep: int,
    scale_input: bool = True,
    lora: dict | None = None,
    time: str = "folded",
    text: str = "none",
    **of_base,
) -> Restorer:
    """Build an untrained restorer like `Restorer.from_base`, whose UNet keeps or loses more than the paper's.

    It is saved whole, with the parts of its base: a reference would build the paper's UNet again.

    Args:
        folder, adapter, resolution, timestep, scale_input, lora: of `Restorer.from_base`.
        time: "folded", exact, or "deleted": nothing stands in for the time embedding.
        text: "none" and "empty_prompt" as of `Denoiser.from_base`; "untouched" keeps all of cross-attention, under the
            empty prompt, so that a LoRA reaches its keys and values too.
        of_base: of `Base.from_pretrained`.

    Raises InputError for another time or text, and where `Denoiser.from_base` does.
    """
    for name, value, known in (("time", time, TIME), ("text", text, TEXT)):
        if value not in known:
            raise InputError(f"model.build.{name}={value} is unknown; choose one of {', '.join(known)}")
    base = Base.from_pretrained(folder, **of_base, text=text != "none")
    if time == "deleted":
        delete_time(base.unet)
    if text == "untouched":
        denoiser = UntouchedText.from_base(base.unet, base.scheduler, timestep, scale_input, base.null_embedding)
    else:
        null = None if text == "none" else base.null_embedding
        denoiser = Denoiser.from_base(base.unet, base.scheduler, timestep, scale_input, text, null)
    if lora is not None:
        denoiser.add_lora(**lora)
    return Restorer(base.codec(), adapter, denoiser, resolution)


@torch.no_grad()
def delete_time(unet: UNet2DConditionModel) -> None:
    """Let the time embedding say nothing, in place: its projections become zero, and so does what is folded of them."""
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            block.time_emb_proj.weight.zero_()
            block.time_emb_proj.bias.zero_()


class AskedAttention(PromptAttention):
    """Attention to one prompt whose keys and values are computed each time: a LoRA can change them."""

    def __init__(self, attention: Attention, embedding: Tensor):
        nn.Module.__init__(self)
        self.heads, self.to_q, self.to_out = attention.heads, attention.to_q, attention.to_out
        self.to_k, self.to_v = attention.to_k, attention.to_v
        self.register_buffer("embedding", embedding, persistent=False)

    @property
    def key(self) -> Tensor:
        """The prompt's keys `[1, heads, L, d]` as they are now."""
        return self._split(self.to_k(self.embedding)).contiguous()

    @property
    def value(self) -> Tensor:
        """The prompt's values `[1, heads, L, d]` as they are now."""
        return self._split(self.to_v(self.embedding)).contiguous()


class UntouchedText(Denoiser):
    """A denoiser that keeps cross-attention whole, under one prompt.

    Trained, its keys and values are constants like any others: it is saved, and then loaded, as a `Denoiser` of
    `text="empty_prompt"`, bit for bit the same function; only a `lora_scale` no longer reaches what it learned there.
    """

    @classmethod
    def from_base(
        cls, unet: UNet2DConditionModel, scheduler, timestep: int, scale_input: bool, null_embedding: Tensor
    ) -> "UntouchedText":
        """Prune a pretrained UNet of time alone, in place; `null_embedding [1, L, D]` is the prompt's."""
        blocks = [block for block in unet.modules() if isinstance(block, BasicTransformerBlock)]
        attentions = [block.attn2 for block in blocks]
        denoiser = super().from_base(unet, scheduler, timestep, scale_input, "empty_prompt", null_embedding)
        for block, attention in zip(blocks, attentions, strict=True):
            block.attn2 = AskedAttention(attention, null_embedding)
        return denoiser

    def save_pretrained(self, folder: str | Path, merge: bool = False) -> None:
        """Write what is left when keys and values are made constants; see `Denoiser.save_pretrained`."""
        blocks = [block for block in self.unet.modules() if isinstance(block, BasicTransformerBlock)]
        asked = [block.attn2 for block in blocks]
        try:  # made of these very tensors: of a copy, which lies elsewhere in memory, they would be rounded otherwise
            for block, attention in zip(blocks, asked, strict=True):
                block.attn2 = PromptAttention(attention, attention.embedding)
            super().save_pretrained(folder, merge)
        finally:
            for block, attention in zip(blocks, asked, strict=True):
                block.attn2 = attention
