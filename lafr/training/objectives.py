"""The objective of each stage: its named loss terms, what is trained, and what is frozen.

`Objective` is all of the method that the training loop knows.
"""

import copy
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lafr.data.faces.sources import FaceSet
from lafr.errors import InputError
from lafr.losses.identity import IdentityCosine
from lafr.losses.kept import Kept
from lafr.losses.learned import Gather
from lafr.losses.multilevel import MultiLevelLoss, Restoration
from lafr.losses.structure import LandmarkDistance, LandmarkHeatmap, ParsingSoftLabel, RegionL1, Structure3D
from lafr.models.adapter import Adapter
from lafr.models.restorer import Latents, Restorer

Batch = dict[str, Tensor]

# The networks of these terms expect a whole aligned face: on a crop of it their output is meaningless.
WHOLE_FACE = (IdentityCosine, LandmarkDistance, LandmarkHeatmap, ParsingSoftLabel, RegionL1, Structure3D)


class Objective(nn.Module):
    """Named terms with weights, over the parameters that require a gradient.

    Attributes:
        weights: name -> weight of each term that `forward` returns; others are reported only.
        absent: names of terms that some models have not; their weights are then without effect.
        codec: the frozen codec, in stages that need z_hq; a batch that holds "z_hq" need not be encoded.
        kept: outputs of frozen networks on ground-truth faces; None computes them at each step.
        kept_lq: latents of LQ images that a later stage sees again; None encodes them at each step.
    """

    weights: dict[str, float]
    absent: frozenset[str] = frozenset()
    weights_of = "Objective.weights"  # in errors
    kept: Kept | None = None
    kept_lq: Kept | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the unweighted terms, each a scalar."""
        raise NotImplementedError

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum that is minimised; raises InputError where a weight has no term, or all are 0."""
        # weight 0 means "report, don't train": such a term needs no backward pass
        trained = {name: weight for name, weight in self.weights.items() if weight}
        if unknown := trained.keys() - terms.keys() - self.absent:
            raise InputError(self.weights_of, sorted(unknown), f"weights of the terms {', '.join(terms)}")
        weighted = [weight * terms[name] for name, weight in trained.items() if name in terms]
        if not weighted:
            raise InputError(self.weights_of, self.weights, f"above 0 for one of {', '.join(terms)} at least")
        return sum(weighted)

    def require_ready(self) -> None:
        """Raise InputError where the model lacks what an earlier stage gives it."""

    def before_step(self, batches: Sequence[Batch], step: int, gather: Gather) -> None:
        """Prepare optimiser step `step`, given this process's micro-batches and a gather over all processes."""

    def after_step(self, step: int, gather: Gather) -> dict[str, Tensor]:
        """Finish optimiser step `step`: for what the stage's optimiser does not hold. Returns scalars to log."""
        return {}

    def learned_state(self) -> dict:
        """Return the state of what `after_step` trains with an optimiser of its own: needed to resume, not later."""
        return {}

    def load_learned_state(self, state: dict) -> None:
        """Load what `learned_state` returned."""

    def restore(self, batch: Batch) -> Tensor | None:
        """Return the images that validation measures and shows, `[B, 3, H, W]`, or None."""
        return None

    def finish(self, faces: FaceSet, device: torch.device) -> None:
        """Compute what depends on the trained weights, once, after the last step."""

    def trained_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that are learned without a gradient (an EMA codebook)."""
        return {}

    def trained_state(self) -> dict[str, Tensor]:
        """Return every tensor that training changes, by name: what a checkpoint holds."""
        # .data: the tensors themselves, so that load_trained_state can copy into them
        parameters = {name: p.data for name, p in self.named_parameters() if p.requires_grad}
        return parameters | self.trained_buffers()

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Copy a trained state back, bit for bit; missing and unexpected names are errors."""
        own = self.trained_state()
        if own.keys() != state.keys():
            missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise ValueError(f"trained state does not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass, in every module that supports it."""
        for module in self.modules():
            # diffusers' marker
            if getattr(module, "_supports_gradient_checkpointing", False):
                module.enable_gradient_checkpointing()

    def decode_crops(self, side: int, seed: int) -> None:
        """Decode only a crop of each face for the loss; a no-op where the loss decodes nothing, as here."""


def require_codes(adapter: Adapter) -> None:
    """Raise InputError where an adapter has codes which no codebook stage has set."""
    # the library would start them itself, from the first micro-batch of each process: no two processes, and no resumed
    # run, would have the same
    if adapter.quantizer.has_codes and not adapter.quantizer.is_initialised():
        remedy = "train the codebook stage before this one, or start from a model that has been trained"
        raise InputError("the codes of this adapter are not set", remedy=remedy)


def hq_latents(batch: Batch, codec: nn.Module, kept: Kept | None = None) -> Tensor:
    """Return z_hq `[B, C, h, w]`: from the batch where the stream has cached it (lafr.data.latents), else encoded.

    Encoded once a face where it is `kept` and the batch says which faces it holds.
    """
    if "z_hq" in batch:
        return batch["z_hq"]
    if kept and "face" in batch:
        return kept(codec.encode, batch["hq"], batch["face"].tolist())
    return codec.encode(batch["hq"])


def lq_latents(batch: Batch, codec: nn.Module, kept: Kept | None = None) -> Tensor:
    """Return z_lq `[B, C, h, w]`; encoded once a pair where it is `kept` and the batch is one of training."""
    # validation numbers its own pairs from 0, and names no faces
    if kept and "face" in batch:
        return kept(codec.encode, batch["lq"], batch["n"].tolist())
    return codec.encode(batch["lq"])


def cropped(z: Tensor, image: Tensor, n: Tensor, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return a crop of `side` x `side` positions of each latent `[B, C, h, w]` and of its image `[B, 3, H, W]`.

    Its position depends on (seed, pair number) alone. Raises InputError when `side` is larger than the latent.
    """
    height, width = z.shape[-2:]
    if not 0 < side <= min(height, width):
        raise InputError("decode_crop", side, f"from 1 to {min(height, width)}, the side of the latent")
    f = image.shape[-1] // width  # pixels per latent position, 8 for Stable Diffusion
    z_crops, image_crops = [], []
    for latent, own, number in zip(z, image, n.tolist(), strict=True):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + number)
        y, x = (int(torch.randint(free + 1, (), generator=draw)) for free in (height - side, width - side))
        z_crops.append(latent[:, y : y + side, x : x + side])
        image_crops.append(own[:, f * y : f * (y + side), f * x : f * (x + side)])
    return torch.stack(z_crops), torch.stack(image_crops)


class CodebookObjective(Objective):
    """Codebook phase: auto-encode HQ latents through extractor, codebook and mapper.

    Terms: `latent_l1` of the rebuilt latent and `commitment` (van den Oord et al., 2017, Eq. 3). Only extractor and
    mapper have gradients. The codes start from k-means, follow by moving average, and dead ones are reset, once per
    optimiser step, from the features of the whole global batch: the same on every process, whatever their number and
    the accumulation.
    """

    def __init__(self, restorer: Restorer, weights: dict[str, float], seed: int = 0):
        super().__init__()
        self.codec, self.adapter, self.seed = restorer.codec, restorer.adapter.requires_grad_(True), seed
        # a code predictor learns in the alignment phase alone
        for part in self.adapter.quantizer.aligned_parts():
            part.requires_grad_(False)
        self.weights = dict(weights)
        self._seen: list[tuple[Tensor, Tensor]] = []  # features and indices of each micro-batch of a step

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return latent_l1 and commitment on HQ latents."""
        quantizer = self.adapter.quantizer
        z_hq = hq_latents(batch, self.codec, self.kept)  # [B, C, h, w]
        features = self.adapter.extract(z_hq)  # [B, d, h, w]
        quantized = quantizer.quantize(features)  # the nearest codes, [B, d, h, w]
        z_rebuilt = self.adapter.map(quantized.features)  # [B, C, h, w]
        # only training steps move the codes, not validation
        if quantizer.has_codes and self.training and torch.is_grad_enabled():
            self._seen.append((features.detach(), quantized.indices))
        return {"latent_l1": F.l1_loss(z_rebuilt, z_hq), "commitment": quantized.commitment}

    @torch.no_grad()
    def before_step(self, batches: Sequence[Batch], step: int, gather: Gather) -> None:
        """Start the codes by k-means on the features of the first global batch."""
        self._seen.clear()
        quantizer = self.adapter.quantizer
        if quantizer.has_codes and not quantizer.is_initialised():
            features = [gather(self.adapter.extract(hq_latents(batch, self.codec))) for batch in batches]
            quantizer.initialise(torch.cat(features), self._generator(step))

    @torch.no_grad()
    def after_step(self, step: int, gather: Gather) -> dict[str, Tensor]:
        """Move the codes towards the features that chose them, and reset dead ones."""
        if not self.adapter.quantizer.has_codes:
            return {}
        # after the step: in between, all micro-batches have to meet the same codes
        features = torch.cat([gather(seen) for seen, _ in self._seen])  # of the global batch, on every process
        indices = torch.cat([gather(seen) for _, seen in self._seen])
        self._seen.clear()
        self.adapter.quantizer.update(features, indices, self._generator(step))
        return {}

    def _generator(self, step: int) -> torch.Generator:
        """Return the generator of k-means and of the replacements of dead codes: a resumed run draws the same."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)

    def restore(self, batch: Batch) -> Tensor:
        """Return the HQ faces rebuilt through the codebook: the upper bound of what its codes can restore."""
        features = self.adapter.extract(hq_latents(batch, self.codec))
        codes = self.adapter.quantizer.quantize(features).features
        return self.codec.decode(self.adapter.map(codes))

    def trained_buffers(self) -> dict[str, Tensor]:
        """Return codes, their moving averages and cluster sizes."""
        buffers = self.adapter.quantizer.code_buffers()
        return {f"adapter.quantizer.{name}": value for name, value in buffers.items()}


class AlignmentObjective(Objective):
    """Alignment phase: codebook and mapper are frozen, the extractor learns to map LQ latents to the HQ codes.

    Terms: `latent_l1` of z_aligned to z_hq, `feature_mse` to the HQ code (CodeFormer, DAEFR) and `index_ce`,
    the cross-entropy of the HQ code's index given the distances to all codes. `latent_gap_before`,
    the distance of z_lq to z_hq, is reported only. Without codes there is `latent_l1` alone.
    """

    absent = frozenset({"feature_mse", "index_ce"})

    def __init__(self, restorer: Restorer, weights: dict[str, float]):
        super().__init__()
        self.codec, self.adapter = restorer.codec, restorer.adapter
        self.adapter.requires_grad_(True)
        # without codes there is no first phase, and the mapper learns here
        if self.adapter.quantizer.has_codes:
            self.adapter.quantizer.requires_grad_(False)
            self.adapter.mapper.requires_grad_(False)
        for part in self.adapter.quantizer.aligned_parts():
            part.requires_grad_(True)
        # the targets are the codes that the codebook phase's extractor finds in z_hq
        self.hq_extractor = copy.deepcopy(self.adapter.extractor).requires_grad_(False)
        self.weights = dict(weights)

    def require_ready(self) -> None:
        """Raise InputError for codes that are not set."""
        require_codes(self.adapter)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return latent_l1, feature_mse, index_ce and latent_gap_before."""
        quantizer = self.adapter.quantizer
        z_hq = hq_latents(batch, self.codec, self.kept)  # [B, C, h, w]
        z_lq = lq_latents(batch, self.codec, self.kept_lq)  # [B, C, h, w]
        features = self.adapter.extract(z_lq)  # [B, d, h, w]
        z_aligned = self.adapter.map(quantizer.assign(features).features)  # [B, C, h, w]
        terms = {"latent_l1": F.l1_loss(z_aligned, z_hq)}
        if quantizer.has_codes:
            with torch.no_grad():
                code = quantizer.quantize(self.hq_extractor(z_hq).float())  # features [B, d, h, w]
            # pull the LQ feature to the HQ code, and away from the other codes
            terms["feature_mse"] = F.mse_loss(features, code.features)
            terms["index_ce"] = quantizer.index_cross_entropy(features, code.indices)
        terms["latent_gap_before"] = F.l1_loss(z_lq, z_hq)
        return terms

    def restore(self, batch: Batch) -> Tensor:
        """Return the decoded aligned latents."""
        return self.codec.decode(self.adapter(self.codec.encode(batch["lq"])))


class LossObjective(Objective):
    """An objective whose terms are those of a `MultiLevelLoss`, some of which may train parameters of their own."""

    weights_of = "weights"

    def __init__(self, loss: MultiLevelLoss):
        super().__init__()
        self.loss, self.weights = loss, loss.weights

    def before_step(self, batches: Sequence[Batch], step: int, gather: Gather) -> None:
        """Drop what an interrupted step left."""
        self.loss.forget()

    def after_step(self, step: int, gather: Gather) -> dict[str, Tensor]:
        """Train the terms that have parameters of their own."""
        return self.loss.update(gather)

    def learned_state(self) -> dict:
        """Return the state of each of these terms, by name."""
        return {name: term.training_state() for name, term in self.loss.learned().items()}

    def load_learned_state(self, state: dict) -> None:
        """Load what `learned_state` returned."""
        for name, term in self.loss.learned().items():
            term.load_training_state(state[name])


class RestorationObjective(LossObjective):
    """Restoration: the denoiser's LoRA learns under the multi-level loss; codec, codebook and mapper are frozen.

    Args:
        restorer: whose LoRA is trained.
        loss: the multi-level loss.
        train_extractor: the adapter's extractor learns on too, through the codes by straight-through; else the whole
            adapter is frozen (the paper's). For a stage in latents: nothing here holds the features to their codes, and
            through the decoder, at 7e-4, they left them after 1,000 steps of 8 faces (gradient norm 0.4 to 8.5).

    Attributes:
        crop: (side, seed) of the crop of each latent that is decoded, see `cropped`; None decodes all of it.
    """

    crop: tuple[int, int] | None = None

    def __init__(self, restorer: Restorer, loss: MultiLevelLoss, train_extractor: bool = False):
        super().__init__(loss)
        self.restorer = restorer
        restorer.trained_with |= loss.origins()  # saved with the model: metrics with these networks are marked
        restorer.requires_grad_(False)
        # a stage before may have trained the adapter: all is frozen but the LoRA
        for parameter in restorer.denoiser.lora_parameters():
            parameter.requires_grad_(True)
        if train_extractor:
            for part in (restorer.adapter.extractor, *restorer.adapter.quantizer.aligned_parts()):
                part.requires_grad_(True)

    @property
    def codec(self) -> nn.Module:
        """The restorer's."""
        return self.restorer.codec

    def require_ready(self) -> None:
        """Raise InputError for codes that are not set."""
        require_codes(self.restorer.adapter)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss."""
        with torch.no_grad():  # a target
            z_hq = hq_latents(batch, self.codec, self.kept)  # [B, C, h, w]
        latents, hq = self.latents(batch), batch["hq"]  # [B, C, h, w] each, [B, 3, H, W]
        z_restored, z_aligned = latents.z_restored, latents.z_aligned
        if self.loss.sees_latents_only:  # the decoder is three quarters of a step, and would go unused
            return self.loss(Restoration(hq, hq, z_restored, z_hq, batch["n"], z_aligned=z_aligned))
        recall = None
        # of a crop nothing is kept: it is another one each time
        if self.kept and "face" in batch and not self.crop:
            recall = partial(self.kept, keys=batch["face"].tolist())
        z_decoded = z_restored
        if self.crop:
            z_decoded, hq = cropped(z_restored, hq, batch["n"], *self.crop)
        restored = self.codec.decode(z_decoded)  # not clamped: a clamped value has no gradient
        # latent terms see all of z_restored, image terms the decoded crop
        return self.loss(Restoration(restored, hq, z_restored, z_hq, batch["n"], recall, z_aligned))

    def latents(self, batch: Batch) -> Latents:
        """Return every latent on the way from the LQ images."""
        return self.restorer.latents_of(lq_latents(batch, self.restorer.codec, self.kept_lq))

    def decode_crops(self, side: int, seed: int) -> None:
        """Decode only a crop of each face for the loss: an approximation, as the decoder then lacks its surroundings.

        Raises InputError where a term of the loss needs the whole face.
        """
        whole = [name for name, term in self.loss.terms.items() if isinstance(term, WHOLE_FACE)]
        if whole:
            raise InputError(
                "decode_crop",
                side,
                f"None, because {', '.join(whole)} need whole faces",
                "or choose a loss of appearance alone",
            )
        self.crop = side, seed

    def restore(self, batch: Batch) -> Tensor:
        """Return the restored faces."""
        return self.restorer(batch["lq"])
