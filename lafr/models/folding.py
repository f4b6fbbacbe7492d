"""A UNet at one time and under one prompt: both become constants of its layers, and neither is an input any more."""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional as F

from lafr.errors import InputError, setting

TEXT = ("none", "empty_prompt")

# Where a UNet's configuration says otherwise, time or text enters in a way that is not folded here.
PLAIN = dict(
    resnet_time_scale_shift="default", resnet_skip_time_act=False, time_embedding_act_fn=None, class_embed_type=None,
    num_class_embeds=None, addition_embed_type=None, encoder_hid_dim_type=None, cross_attention_norm=None,
    only_cross_attention=False, dual_cross_attention=False,
)  # fmt: skip


class PromptAttention(nn.Module):
    """Attention to one fixed prompt: diffusers' `Attention` with the keys and values of that prompt in place of text.

    `to_q` and `to_out` are the original's and keep their names, so that a LoRA has the same keys in both.

    Args:
        attention: a cross-attention without normalisation of queries, keys or text.
        embedding: `[1, L, D]`, what the text encoder gives for the prompt.
    """

    def __init__(self, attention: Attention, embedding: Tensor):
        super().__init__()
        self.heads, self.to_q, self.to_out = attention.heads, attention.to_q, attention.to_out
        with torch.no_grad():
            embedding = embedding.to(attention.to_k.weight)
            self.register_buffer("key", self._split(attention.to_k(embedding)).contiguous())  # [1, heads, L, d]
            self.register_buffer("value", self._split(attention.to_v(embedding)).contiguous())

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        """Map `[B, h * w, C]` to the same shape; text and mask, which diffusers hands over, are not looked at."""
        # keys and values are constants, so only queries are computed: a third of the projections
        query = self._split(self.to_q(hidden_states))  # [B, heads, h * w, d]
        key, value = (constant.expand(len(query), -1, -1, -1) for constant in (self.key, self.value))
        found = F.scaled_dot_product_attention(query, key, value)  # softmax(q K^T / sqrt(d)) V
        found = found.transpose(1, 2).flatten(2)
        for layer in self.to_out:
            found = layer(found)
        return found

    def _split(self, features: Tensor) -> Tensor:
        # [B, L, heads * d] -> [B, heads, L, d]
        return features.unflatten(2, (self.heads, -1)).transpose(1, 2)


class _NoTime(nn.Module):
    # ResnetBlock2D without a projection would add the raw embedding, so there must be none.
    def forward(self, *_: Any) -> None:
        return None


def require_foldable(unet: UNet2DConditionModel, text: str, null_embedding: Tensor | None) -> None:
    """Raise InputError unless time and text enter `unet` as in Stable Diffusion 1 and 2, and `text` is possible."""
    # None stands for the plain choice in older configurations
    other = {k: unet.config[k] for k, plain in PLAIN.items() if unet.config.get(k, plain) not in (plain, None)}
    if other:
        raise InputError(f"this UNet has {other}; LAFR folds time and text of UNets like Stable Diffusion 1 and 2's")
    if text not in TEXT:
        raise InputError("text", text, f"one of {', '.join(TEXT)}")
    if text == "empty_prompt":
        if null_embedding is None:
            raise InputError(
                f"{setting('text', text)} needs the empty prompt's embedding and the base model has none; "
                f"put null_embedding.safetensors next to its unet/ or choose {setting('text', 'none')}"
            )
        shape, wanted = tuple(null_embedding.shape), unet.config.cross_attention_dim
        if len(shape) != 3 or shape[0] != 1 or shape[2] != wanted:
            raise InputError(
                f"the empty prompt's embedding is {list(shape)}, not [1, L, {wanted}]; take the text encoder that the "
                "base model was trained with"
            )


def fold_time(unet: UNet2DConditionModel, timestep: int) -> None:
    """Add each resnet's time projection at `timestep` to the bias of its first convolution: exact, in place."""
    with torch.no_grad():
        # device and dtype of the UNet's weights
        weight = unet.time_embedding.linear_1.weight
        t = torch.tensor([timestep], device=weight.device)
        embedding = unet.time_embedding(unet.time_proj(t).to(weight.dtype))  # [1, D]
        for block in unet.modules():
            if isinstance(block, ResnetBlock2D):
                block.conv1.bias += block.time_emb_proj(block.nonlinearity(embedding))[0]


def remove_time(unet: UNet2DConditionModel) -> None:
    """Delete the time layers, in place: exact after `fold_time`."""
    unet.time_embedding = _NoTime()
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D):
            block.time_emb_proj = None


def replace_text(unet: UNet2DConditionModel, text: str, null_embedding: Tensor | None = None) -> None:
    """Delete cross-attention (`text="none"`, the paper's) or fix its prompt (`"empty_prompt"`, exact), in place."""
    for block in unet.modules():
        if isinstance(block, BasicTransformerBlock):
            if text == "empty_prompt":
                block.attn2 = PromptAttention(block.attn2, null_embedding)
            else:
                block.attn2 = block.norm2 = None
