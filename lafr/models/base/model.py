"""The base model: autoencoder, noise predictor, noise schedule; from a folder in diffusers layout, a file or a hub."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr.errors import InputError, reason_of, setting
from lafr.models.base.single_file import load_single_file
from lafr.models.base.sources import CONFIGS, TEXT, Found, find, require_pinned, weights
from lafr.models.base.supported import known, require_known
from lafr.models.codec import Codec, require_autoencoder
from lafr.models.loading import (
    load_exactly,
    planned,
    read_config,
    read_header,
    require_finite,
    require_modest,
    require_own,
)
from lafr.models.schema import Range, fits, read_object
from lafr.storage import sha256_of_tensors

NULL = "null_embedding.safetensors"
MARKED = 16  # values of each weight in `Base.mark`
LONGEST_PROMPT = 4096  # tokens; CLIP's have 77
Steps = Annotated[int, Range(1, 10_000)]
# How the attention of autoencoders saved before 2023 is called, and now; diffusers renames it as it loads.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


@dataclass
class Base:
    """A latent diffusion model: autoencoder, noise predictor, noise schedule.

    `null_embedding [1, L, D]` is its null condition, None where it isn't stored and nobody asked for it; `source` is
    what finds it again (see `lafr.models.base.sources.Found`), None when it came from no source.
    """

    vae: nn.Module
    unet: UNet2DConditionModel
    scheduler: DDPMScheduler
    null_embedding: Tensor | None
    source: str | None = None

    def codec(self) -> Codec:
        """Return the frozen codec around the autoencoder."""
        return Codec(self.vae)

    def null_condition(self) -> Tensor:
        """Return the null embedding, for what cannot do without; raises InputError where there is none."""
        if self.null_embedding is None:
            raise InputError(
                f"the base {self.source!r} has no null embedding, which its UNet is conditioned on here",
                remedy=f"save a {NULL} of shape [1, L, D] next to its unet/",
            )
        return self.null_embedding

    def mark(self) -> str | None:
        """Return a hash of a few values of each weight, in half precision: equal for "fp16" files of the same weights.

        Weights of the same shapes, as those of SD 2.1-base and SD-Turbo, are told apart by it in milliseconds, where a
        sha256 of all takes seconds. None without values, on the meta device.
        """
        found = {}
        for part, model in (("vae", self.vae), ("unet", self.unet)):
            for name, value in model.state_dict().items():
                if value.is_meta:
                    return None
                found[f"{part}.{name}"] = value.flatten()[:MARKED].to(torch.float16)
        return sha256_of_tensors(found)

    def save_pretrained(self, folder: str | Path, variant: torch.dtype = torch.float32) -> None:
        """Write the parts in diffusers layout; `variant` is the precision of the stored weights."""
        folder = Path(folder)
        # the layout of `StableDiffusionPipeline`: other tools load each folder
        for name, part in (("vae", self.vae), ("unet", self.unet)):
            # a copy, as diffusers' from_config would forget the latent scale where it was not given at the start
            copy.deepcopy(part).to(variant).save_pretrained(folder / name)
        self.scheduler.save_pretrained(folder / "scheduler")
        if self.null_embedding is not None:
            save_file({"null_embedding": self.null_embedding.to(variant).contiguous()}, folder / NULL)

    @classmethod
    def from_pretrained(
        cls,
        sources: str | Path | Sequence[str | Path],
        remedy: str = "give a folder in diffusers layout",
        offline: bool = False,
        sha256: Mapping[str, str] | None = None,
        expect: str | None = None,
        variant: str | None = None,
        text: bool = False,
    ) -> "Base":
        """Load the first source that is there, in float32.

        Args:
            sources: one or several, in order; see `lafr.models.base.sources.find`.
            remedy: ends the error when none is there.
            offline: never ask the network.
            sha256: pins, by path relative to the folder; a file's own name where the source is a single file.
            expect: name of the model in `lafr.models.base.supported.KNOWN` that it must be; None takes any.
            variant: "fp16" is preferred to the full weights.
            text: the null condition is needed. Where none is stored, it is the empty prompt's embedding, by the
                folder's own text encoder.

        Raises InputError when no source is there, a pin or the model is another one, or weights don't fit.
        """
        if expect:
            known(expect)  # before anything is fetched
        found = find(sources, remedy, offline, variant, text)
        if found.path.is_file():
            require_pinned(found.path.parent, [found.path], sha256)
            base = cls(*load_single_file(found.path, expect), None, found.name)
        else:
            base = cls._from_folder(found, sha256, expect, text)
        if text and base.null_embedding is None:
            raise InputError(
                f"the empty prompt's embedding is needed, but {str(found.path)!r} has no {NULL}, text_encoder/ and "
                f"tokenizer/; choose a folder that has them, or {setting('text', 'none')}"
            )
        return base

    @classmethod
    def _from_folder(cls, found: Found, sha256: Mapping[str, str] | None, expect: str | None, text: bool) -> "Base":
        folder, null = found.path, found.path / NULL
        require_own(folder, (NULL, *CONFIGS, *TEXT))
        # a stored embedding needs no text encoder, which is 1.3 GB for SD 2.1
        encode = text and not null.is_file() and all((folder / part / file).is_file() for part, file in TEXT.items())
        parts = ["vae", "unet", "scheduler", *(TEXT if encode else ())]
        opened = [path for part in parts for path in (folder / part).rglob("*.json")]
        opened += [null] if null.is_file() else []
        opened += [path for part, variant in found.variants.items() for path in weights(folder, part, variant)]
        opened += _encoder_weights(folder)[1] if encode else []
        # before anything is parsed: a file that is not the pinned one is never opened
        require_pinned(folder, opened, sha256)
        vae, unet, scheduler = planned_parts(folder, expect)
        require_autoencoder(vae, str(folder / "vae" / "config.json"))
        for part, model in (("vae", vae), ("unet", unet)):
            # not diffusers' own loading: it reads what an index names, also outside the folder, and quantised weights
            state = load_exactly(weights(folder, part, found.variants[part]), model.state_dict(), _present_name)
            # float32 whatever the file holds: "fp16" saves the download, not precision in use
            model.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
            model.eval()
        embedding = read_null_embedding(null) if null.is_file() else None
        return cls(vae, unet, scheduler, empty_prompt(folder) if encode else embedding, found.name)


def planned_parts(folder: Path, expect: str | None) -> tuple[AutoencoderKL, UNet2DConditionModel, DDPMScheduler]:
    """Return a folder's parts on the meta device: a wrong model is named before gigabytes are read.

    Raises InputError unless it is the model `expect`, or without it one that a restorer can be built on.
    """
    scheduler = read_scheduler(folder / "scheduler")
    vae = planned(AutoencoderKL, read_config(folder / "vae"), str(folder / "vae" / "config.json"))
    unet = planned(UNet2DConditionModel, read_config(folder / "unet"), str(folder / "unet" / "config.json"))
    require_known(vae.config, unet.config, scheduler.config, str(folder), expect)
    return vae, unet, scheduler


def read_scheduler(folder: Path) -> DDPMScheduler:
    """Return the noise schedule of a folder's `scheduler_config.json`; raises InputError when it is none."""
    path = folder / "scheduler_config.json"
    config = read_object(path)
    steps, betas = config.get("num_train_timesteps", 1000), config.get("trained_betas")
    # before anything is built: the schedule takes memory for each step
    if not fits(steps, Steps) or not fits(betas, None if betas is None else list[float]):
        raise InputError(f"{str(path)!r} has num_train_timesteps={steps!r:.40}, or trained_betas that are no numbers")
    try:
        scheduler = DDPMScheduler.from_config(config)
    except Exception as error:  # as in `planned`
        raise InputError(f"{str(path)!r} holds a configuration of another kind of model: {reason_of(error)}") from None
    alphas = scheduler.alphas_cumprod
    if not bool(((alphas >= 0) & (alphas <= 1)).all()):
        raise InputError(f"{str(path)!r} is no noise schedule: its betas are not all from 0 to 1")
    return scheduler


def read_null_embedding(path: Path) -> Tensor:
    """Return the null condition `[1, L, D]`, float32; raises InputError when the file holds anything else."""
    shape = next(iter(read_header(path).values()), ((), True))[0]
    if len(shape) != 3 or shape[0] != 1 or shape[1] > LONGEST_PROMPT:
        raise InputError(f"{str(path)!r} holds no embedding [1, L, D], but {list(shape)}; fetch or save it again")
    return load_exactly(path, {"null_embedding": torch.empty(shape, device="meta")})["null_embedding"].float()


def _present_name(name: str) -> str:
    for old, new in RENAMED.items():
        name = name.replace(old, new)
    return name


def _encoder_weights(folder: Path) -> tuple[str | None, list[Path]]:
    # not `Found.variants`: the text encoder may come in another precision than the UNet
    for variant in (None, "fp16"):
        if files := weights(folder, "text_encoder", variant):
            return variant, files
    raise InputError(f"{str(folder)!r} has no text_encoder/*.safetensors; fetch it again")


@torch.no_grad()
def empty_prompt(folder: Path) -> Tensor:
    """Return the embedding `[1, L, D]` of the empty prompt by the folder's CLIP text encoder, float32."""
    from transformers import CLIPTextModel, CLIPTokenizer

    # imported above at first use: transformers takes seconds to load
    where, (variant, files) = folder / "text_encoder", _encoder_weights(folder)
    require_modest(read_config(where), str(where / "config.json"))
    for index in where.glob("*.index*.json"):
        listed = read_object(index).get("weight_map")
        if not isinstance(listed, dict) or not {*listed.values()} <= {file.name for file in files}:
            raise InputError(f"{str(index)!r} names other files than those next to it; fetch it again")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        settings = dict(variant=variant, use_safetensors=True, dtype=torch.float32, output_loading_info=True)
        encoder, loaded = CLIPTextModel.from_pretrained(where, local_files_only=True, **settings)
    except Exception as error:  # as in `planned`
        raise InputError(f"{str(where)!r} or tokenizer/ next to it cannot be read: {reason_of(error)}") from None
    if loaded["missing_keys"]:  # transformers gives them a random start and only warns
        raise InputError(f"weights in {str(where)!r} do not fit: {min(loaded['missing_keys'])} is missing")
    require_finite(encoder.state_dict(), where)
    length = tokenizer.model_max_length
    if length > LONGEST_PROMPT:  # transformers' answer to a length that is not stated is 10**30
        raise InputError(f"{str(folder / 'tokenizer')!r} has model_max_length {length:.3g}; CLIP's is 77")
    # padded to the full length, as Stable Diffusion was trained: the padding's tokens are attended to
    tokens = tokenizer("", padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    # [1, 77, D]: the last hidden state after its final norm, as diffusers' pipelines take it
    return encoder.eval()(tokens.input_ids)[0]


def new_base(vae: dict, unet: dict, scheduler: dict, null_tokens: int = 4, seed: int = 0) -> Base:
    """Return an untrained base model of the given diffusers configurations, initialised by `seed`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # drawn first: it decides the random numbers of the networks, which tests pin
        null = torch.randn(1, null_tokens, unet["cross_attention_dim"])
        return Base(AutoencoderKL(**vae), UNet2DConditionModel(**unet), DDPMScheduler(**scheduler), null)
