"""A base model from one checkpoint file in Stable Diffusion's original layout, through diffusers; no network."""

import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from diffusers.utils import logging
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lafr.errors import InputError, reason_of, setting
from lafr.models.base.supported import KNOWN, differences, known, require_known
from lafr.models.loading import MOST_VALUES, require_finite
from lafr.storage import write_json

UNET, VAE = "model.diffusion_model.", ("first_stage_model.", "vae.")
LAYOUT = f"{UNET}input_blocks.0.0.weight"


def load_single_file(path: Path, expect: str | None) -> tuple[AutoencoderKL, UNet2DConditionModel, DDPMScheduler]:
    """Return autoencoder, UNet and noise schedule, float32; refused by name from the shapes, before weights are read.

    A file has no configuration: that of the expected model is used, or of the known model whose shapes it has. Averaged
    weights (EMA) are preferred where both are there. What the UNet predicts is asked of the UNet itself.
    """
    name = recognised(path, expect)
    # without the text encoder: LAFR deletes the text input, or fixes it to a stored embedding
    state = {k: v.float() for k, v in _read(path).items() if k.startswith((UNET, "model_ema.", *VAE))}
    entry = known(name)
    try:
        # diffusers reads configurations from a folder, or else asks the hub
        with TemporaryDirectory() as folder, _quiet():
            parts = []
            for kind, config in ((AutoencoderKL, entry.vae), (UNet2DConditionModel, entry.unet)):
                place = Path(folder) / kind.__name__
                place.mkdir()
                write_json({"_class_name": kind.__name__, **config}, place / "config.json")
                parts.append(kind.from_single_file(state, config=str(place), extract_ema=True, local_files_only=True))
            # diffusers builds on the meta device: what the file lacks keeps no value
            if any(value.is_meta for part in parts for value in part.state_dict().values()):
                raise NotImplementedError
    except NotImplementedError:  # what torch says of a weight that was given no value
        raise InputError(
            f"{str(path)!r} holds a part of {entry.title} only, some weights are missing; fetch it again"
        ) from None
    except Exception as error:  # SingleFileComponentError, RuntimeError of a shape, ValueError, ...
        reason = str(error).splitlines()[0][:150] if str(error) else type(error).__name__
        raise InputError(f"weights in {str(path)!r} are not those of {entry.title}: {reason}") from None
    vae, unet = parts
    for part in parts:
        require_finite(part.state_dict(), path)
    require_noise_predictor(unet, path)
    return vae, unet, DDPMScheduler(**entry.scheduler)


def recognised(path: Path, expect: str | None) -> str:
    """Return the known model whose shapes a file has; raises InputError that names any other. Reads no weights."""
    try:
        return _recognise(path, _read(path, meta=True), expect)
    except (ValueError, KeyError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} has tensors of Stable Diffusion's names, not of its shapes") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Let diffusers not warn that averaged weights are taken, and of casts that none are."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _read(path: Path, meta: bool = False) -> dict[str, Tensor]:
    """Return the file's tensors; with `meta` their shapes alone, as tensors on the meta device."""
    try:
        if path.suffix == ".safetensors" and not meta:
            return load_file(path)
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in names}
        mapped = zipfile.is_zipfile(path)  # older pickles can't be
        state = torch.load(path, map_location="meta" if meta else "cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError:
        raise InputError(
            f"{str(path)!r} holds more than weights, or is damaged, and isn't unpickled; give it as .safetensors"
        ) from None
    except Exception as error:  # SafetensorError, OSError of a torn zip, and whatever a damaged pickle raises
        raise InputError(f"{str(path)!r} can't be read ({reason_of(error, 100)}); fetch it again") from None
    # PyTorch Lightning nests the weights, some tools twice
    for _ in range(2):
        state = state.get("state_dict", state) if isinstance(state, dict) else {}
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    # a pickle can hold a view of one number that claims any shape
    if sum(value.numel() for value in tensors.values()) > MOST_VALUES:
        raise InputError(f"{str(path)!r} holds more than {MOST_VALUES} values; it is no model that LAFR can use")
    return tensors


def _recognise(path: Path, shapes: dict[str, Tensor], expect: str | None) -> str:
    """Return the known model of these shapes; raises InputError that names any other."""
    if LAYOUT not in shapes:
        raise InputError(
            f"{str(path)!r} is no Stable Diffusion checkpoint in its original layout: it has no {LAYOUT}"
            f"{_otherwise(shapes)}; choose a folder or file that holds {known(expect or 'sd21_base').title}"
        )
    # named from the shapes, before anything is loaded
    unet = unet_config(shapes)
    require_known({}, unet, {}, str(path), expect)
    if not any(name.startswith(VAE) for name in shapes):
        raise InputError(
            f"{str(path)!r} holds no autoencoder ({VAE[0]}*); choose a file or folder that holds all parts"
        )
    fits = [expect] if expect else [name for name, entry in KNOWN.items() if not differences(unet, entry.unet)]
    if not fits:
        read = ", ".join(f"{name} {value}" for name, value in unet.items())
        raise InputError(f"{str(path)!r} is no model that LAFR knows ({read}); give it in diffusers layout")
    return fits[0]


def _otherwise(shapes: dict[str, Tensor]) -> str:
    try:
        kind = infer_diffusers_model_type(shapes)
    except (KeyError, IndexError, UnboundLocalError):
        return ""
    return "" if kind == "v1" else f" (diffusers takes it for {kind})"  # v1 is what it says when it finds nothing


def unet_config(shapes: dict[str, Tensor]) -> dict:
    """Return what the shapes in the original layout say of the UNet, in the words of diffusers' configuration."""

    def shape(ending: str) -> torch.Size:
        return next((v.shape for k, v in shapes.items() if k.startswith(UNET) and k.endswith(ending)), torch.Size([0]))

    # [width, inputs, 3, 3], the first convolution
    width, inputs = shapes[LAYOUT].shape[:2]
    config = {
        "in_channels": inputs,
        "cross_attention_dim": shape("attn2.to_k.weight")[-1],
        # 2.x projects by a linear layer [D, C], 1.x by a 1 x 1 convolution [D, C, 1, 1]
        "use_linear_projection": len(shape("proj_in.weight")) == 2,
        "block_out_channels": [width, *_widths(shapes, width)],
    }
    # an embedding of sizes (XL) or of an image (unCLIP) besides the time
    if f"{UNET}label_emb.0.0.weight" in shapes:
        xl = config["cross_attention_dim"] in (1280, 2048)
        config |= {"addition_embed_type": "text_time"} if xl else {"class_embed_type": "projection"}
    if f"{UNET}label_emb.weight" in shapes:
        config["num_class_embeds"] = shapes[f"{UNET}label_emb.weight"].shape[0]
    return config


def _widths(shapes: dict[str, Tensor], width: int) -> list[int]:
    """Return the channels of the blocks after the first: each begins behind a down-sampling (`op`)."""
    numbers = sorted(int(k.split(".")[3]) for k in shapes if k.startswith(UNET) and k.endswith(".0.op.weight"))
    return [shapes[f"{UNET}input_blocks.{n + 1}.0.out_layers.3.weight"].shape[0] for n in numbers]


@torch.no_grad()
def require_noise_predictor(unet: UNet2DConditionModel, path: Path) -> None:
    """Raise InputError unless the UNet, shown noise at the last step, answers with it: no file says what it predicts.

    z_t is then nearly eps itself; v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans & Ho, 2022) has little of it.
    """
    # abar = 0.0047 at t = 999: z_t is 0.998 eps, so a latent is not needed
    noise = torch.randn(1, unet.config.in_channels, 32, 32, generator=torch.Generator().manual_seed(0))
    answer = unet(noise, 999, noise.new_zeros(1, 77, unet.config.cross_attention_dim)).sample
    cosine = torch.cosine_similarity(answer.flatten(), noise.flatten(), 0).item()
    if not cosine > 0.5:
        raise InputError(
            f"{str(path)!r} does not predict the noise: shown it at the last step, it answers with a cosine of "
            f"{cosine:.2f} to it; Stable Diffusion 2.x at 768 px predicts v, choose the 512 px base, "
            f"{setting('model', 'sd21_base')}"
        )
