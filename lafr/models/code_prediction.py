"""Code prediction: a transformer looks at the whole face and says which codes its HQ partner has."""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn
from vector_quantize_pytorch import VectorQuantize

from lafr.errors import InputError
from lafr.models.adapter import CodebookAdapter, ConvAdapter, Quantized
from lafr.models.codes import flatten, quantizer_settings


class CodePredictor(nn.Module):
    """A transformer over all positions, then a linear layer to the N codes; any spatial size.

    Positions enter as sines of their place in the face, so that no size is learned.
    """

    def __init__(self, code_dim: int, num_codes: int, layers: int, heads: int, ff_width: int):
        super().__init__()
        self.layers = nn.ModuleList(
            BasicTransformerBlock(
                code_dim, heads, code_dim // heads, activation_fn="gelu", ff_inner_dim=ff_width, attention_bias=True
            )
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(code_dim), nn.Linear(code_dim, num_codes)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits `[B, h, w, N]` of `features [B, d, h, w]`, float32; the layers follow autocast."""
        places = get_2d_sincos_pos_embed(features.shape[1], features.shape[-2:], device=features.device)
        tokens = flatten(features) + places.to(features)  # [B, h * w, d]
        for layer in self.layers:
            tokens = layer(tokens)
        return self.head(self.norm(tokens)).float().unflatten(1, features.shape[-2:])


class CodePredictionAdapter(CodebookAdapter):
    """CodeFormer's way (Zhou et al., NeurIPS 2022; DAEFR too): the codes of an LQ latent are predicted, not matched.

    The codebook phase is the paper's, by nearest neighbour, and leaves the predictor alone. In the alignment phase
    codes and mapper are frozen, extractor and predictor learn: `index_ce` is the predictor's cross-entropy, and no
    gradient passes through the choice of a code, so `latent_l1` is only reported.

    Args:
        layers: of the transformer.
        heads: of its attention.
        ff_width: channels inside its feed-forward layers.
        others: as of `CodebookAdapter`.

    Raises InputError when `code_dim` cannot be shared by the heads, or positions cannot be coded in it.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 4,
        width: int = 128,
        code_dim: int = 256,
        extractor_blocks: int = 3,
        mapper_blocks: int = 3,
        num_codes: int = 1024,
        layers: int = 2,
        heads: int = 4,
        ff_width: int = 256,
        decay: float = 0.95,
        dead_below: float = 1.0,
    ):
        if code_dim % 4 or heads < 1 or code_dim % heads:
            raise InputError(f"adapter.code_dim={code_dim} is not a multiple of 4 and of adapter.heads={heads}")
        ConvAdapter.__init__(self, latent_channels, width, code_dim, extractor_blocks, mapper_blocks)
        self.quantizer = VectorQuantize(**quantizer_settings(code_dim, num_codes, decay, dead_below))
        self.predictor = CodePredictor(code_dim, num_codes, layers, heads, ff_width)

    @torch.no_grad()
    def assign(self, features: Tensor) -> Quantized:
        """Look up the most probable code of each position."""
        indices = self.predictor(features).argmax(-1)  # [B, h, w]
        codes = self.quantizer.codebook[indices].permute(0, 3, 1, 2)
        return Quantized(codes, indices[..., None], features.new_zeros(()))

    def assign_in_graph(self, features: Tensor) -> Tensor:
        """Return the features of `assign`."""
        return self.assign(features).features

    def index_cross_entropy(self, features: Tensor, indices: Tensor) -> Tensor:
        """Return the cross-entropy of the codes `indices [B, h, w, 1]` under the predictor's softmax."""
        return F.cross_entropy(self.predictor(features).flatten(0, 2), indices.flatten())

    def frozen_in_codebook(self) -> list[nn.Module]:
        """Return the predictor: there is nothing to predict yet."""
        return [self.predictor]
