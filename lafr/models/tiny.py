"""A small decoder in place of the base model's: diffusers' `AutoencoderTiny`, distilled from it.

Stable Diffusion's is TAESD (Ollin Boer Bohan, MIT): 1.2 M values and a fifteenth of the multiplications of the exact
decoder, for a loss of fine detail. The miniature's own is made by `+experiment=mini_decoder`.
"""

from pathlib import Path

from diffusers import AutoencoderTiny
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import constants, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from lafr.errors import InputError
from lafr.models.base.sources import hub_answers, require_pinned
from lafr.models.base.supported import VAE, differences
from lafr.models.codec import Codec
from lafr.models.loading import load_exactly, planned, read_config, require_own
from lafr.storage import atomic_write, write_json
from lafr.weights import mini_folder

FOLDER = "tiny"  # of a saved model that has one, and of the miniature's
TAESD = "madebyollin/taesd"
REVISION = "931366cc24b8bc15d6f682fa2e0352f1deec397b"  # version 1.2
SHA256 = {SAFETENSORS_WEIGHTS_NAME: "d7956d561b1efbd861ad9b03fd8f01510f9e87eddc07bdfd20837009433f6ee5"}  # by the hub
LOCAL = Path("data/taesd")


def find_tiny(
    name: str | Path, codec: Codec, model: Path | None = None, base: str | None = None, offline: bool = False
) -> Path:
    """Return the folder of a tiny decoder.

    Args:
        name: the folder, or "tiny": the saved model's own, the miniature's, or TAESD from `data/taesd` or the hub.
        codec: what it must fit: TAESD was distilled from the autoencoder of Stable Diffusion 1 and 2.
        model: folder of the saved model.
        base: source of its base model.
        offline: use the hub's cache and ask no network.

    Raises InputError when there is none.
    """
    if str(name) != "tiny":
        return require_tiny(name)
    if model is not None and (model / FOLDER).is_dir():
        return model / FOLDER
    if base == "mini":
        if not (folder := mini_folder() / FOLDER).is_dir():
            raise InputError(f"this miniature has no tiny decoder, {str(folder)!r}; make it: +experiment=mini_decoder")
        return folder
    if differences(codec.vae.config, VAE):
        raise InputError("decoder", "tiny", "base, or a folder: this autoencoder is not Stable Diffusion 1 and 2's")
    return LOCAL if LOCAL.is_dir() else _downloaded(offline)


def require_tiny(folder: str | Path) -> Path:
    """Return the folder of a tiny decoder; raises InputError where there is none."""
    if not Path(folder).is_dir():
        raise InputError("decoder", str(folder), "base, tiny, or the folder of an AutoencoderTiny")
    return Path(folder)


def _downloaded(offline: bool) -> Path:
    files = ["config.json", SAFETENSORS_WEIGHTS_NAME]
    offline = offline or not (constants.HF_HUB_OFFLINE or hub_answers())
    try:
        folder = Path(snapshot_download(TAESD, revision=REVISION, allow_patterns=files, local_files_only=offline))
    except Exception as error:  # whatever the network does
        raise InputError(
            f"the tiny decoder is not in {str(LOCAL)!r} and can't be fetched ({type(error).__name__})",
            remedy=f"hf download {TAESD} --revision {REVISION} --local-dir {LOCAL}",
        ) from None
    # a folder of the user's own is not compared: later versions of TAESD do too
    require_pinned(folder, [folder / SAFETENSORS_WEIGHTS_NAME], SHA256)
    return folder


def load_tiny(folder: Path, codec: Codec) -> AutoencoderTiny:
    """Return the decoder of an `AutoencoderTiny` in diffusers layout, frozen, float32; its encoder is not loaded.

    Raises InputError unless names and shapes of the weights are exactly those of its configuration, and it fits
    `codec`: latent channels, scale of the side and, where the file names it, the autoencoder it was distilled from.
    """
    require_own(folder, ("config.json", SAFETENSORS_WEIGHTS_NAME))
    tiny = planned(AutoencoderTiny, read_config(folder), str(folder / "config.json"))
    path, config = folder / SAFETENSORS_WEIGHTS_NAME, tiny.config
    found = (config.latent_channels, config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1))
    if found != (codec.latent_channels, codec.downscale):
        raise InputError(
            f"the tiny decoder {str(folder)!r} takes {found[0]} channels and enlarges {found[1]} times, not "
            f"{codec.latent_channels} and {codec.downscale} as this model's autoencoder; choose another decoder"
        )
    try:
        with safe_open(path, "pt") as file:
            teacher = (file.metadata() or {}).get("codec")
            whole = any(name.startswith("encoder.") for name in file.keys())  # noqa: SIM118  (it cannot be iterated)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); fetch or save it again") from None
    if teacher and teacher != codec.fingerprint():
        raise InputError(f"the tiny decoder {str(folder)!r} was distilled from another autoencoder than this model's")
    # TAESD's file holds both halves, one of ours only the decoder
    if not whole:
        tiny.encoder = nn.Identity()
    state = load_exactly(path, tiny.state_dict())
    tiny.encoder = nn.Identity()
    tiny.load_state_dict({k: v.float() for k, v in state.items() if k.startswith("decoder.")}, assign=True)
    return tiny.requires_grad_(False).eval()


def save_tiny(tiny: AutoencoderTiny, folder: Path, codec: Codec) -> None:
    """Write a tiny decoder of `codec` in diffusers layout, without an encoder."""
    settings = {k: v for k, v in tiny.config.items() if not k.startswith("_") and k != "block_out_channels"}
    state = {k: v.contiguous() for k, v in tiny.state_dict().items() if k.startswith("decoder.")}
    metadata = {"format": "pt", "codec": codec.fingerprint()}
    atomic_write(folder / SAFETENSORS_WEIGHTS_NAME, lambda temporary: save_file(state, temporary, metadata))
    write_json({"_class_name": "AutoencoderTiny", **settings}, folder / "config.json")
