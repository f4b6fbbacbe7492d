"""Attention a block of queries at a time: for bfloat16 on a CPU."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor

BLOCK = 4 << 20  # bytes of a block's scores: they stay in a core's cache


class BlockedAttention(AttnProcessor2_0):
    """Diffusers' attention processor, but for `blocked_attention` in the place of PyTorch's fused one."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return the layer's output, of its input's shape: `[B, N, C]` or `[B, C, h, w]`.

        A layer with a mask, a prompt or norms of its own is left to diffusers.
        """
        norms = (attn.spatial_norm, attn.norm_q, attn.norm_k)
        if attention_mask is not None or encoder_hidden_states is not None or any(norm is not None for norm in norms):
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **options)
        x = hidden_states.flatten(2).transpose(1, 2) if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        q, k, v = (attn.head_to_batch_dim(layer(x)) for layer in (attn.to_q, attn.to_k, attn.to_v))
        x = attn.batch_to_head_dim(blocked_attention(q * attn.scale, k, v))
        for layer in attn.to_out:
            x = layer(x)
        if hidden_states.ndim == 4:
            x = x.transpose(1, 2).reshape(hidden_states.shape)
        if attn.residual_connection:
            x = x + hidden_states
        return x / attn.rescale_output_factor


def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T) v of heads `[H, N, d]`, of the same shape; q is scaled already.

    PyTorch's fused attention reaches in bfloat16 no more than in float32 on a CPU. Two matrix products with a softmax
    between them take a half to a quarter of its time at 4,096 positions, as long as the scores do not leave the cache.
    """
    rows = max(1, BLOCK // (k.shape[1] * k.element_size()))
    heads = [
        torch.cat([(part @ keys).softmax(-1) @ values for part in queries.split(rows)])
        for queries, keys, values in zip(q, k.transpose(1, 2), v, strict=True)
    ]
    return torch.stack(heads)
