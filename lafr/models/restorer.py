"""The restorer: codec -> adapter -> denoiser -> codec. The paper's Figure in four lines."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lafr.errors import InputError, setting
from lafr.images import ImageLike, aligned_input, as_given, as_images, require_batch
from lafr.models.adapter import Adapter, build_adapter, builder_of, settings_of
from lafr.models.base.model import Base
from lafr.models.base.sources import HUB, REPOSITORY
from lafr.models.codec import Codec
from lafr.models.denoiser import Denoiser
from lafr.models.loading import load_exactly, require_own
from lafr.models.lora import lora_settings
from lafr.models.saved import BASE_SETTINGS, INDEX, Saved
from lafr.models.schema import require_fit
from lafr.models.tiny import FOLDER, find_tiny, load_tiny, require_tiny, save_tiny
from lafr.provenance import TRAINING_SET, read_training_set, write_training_set
from lafr.storage import atomic_write
from lafr.weights import mini_folder

ADAPTER_WEIGHTS = "adapter.safetensors"
BASES = "LAFR_BASES"  # environment variable: folders whose base models saved models may name, separated as in PATH


@dataclass(frozen=True)
class Latents:
    """The latents on the way, each `[B, C, H/f, W/f]`."""

    z_lq: Tensor
    z_aligned: Tensor
    z_restored: Tensor


class Restorer(nn.Module):
    """Restores aligned faces in one step.

    Args:
        codec: frozen autoencoder.
        adapter: aligns LQ latents with the HQ codebook.
        denoiser: one step of the pruned UNet.
        resolution: side in pixels that the parts were trained at.
        base: what finds the base model again, when codec and UNet came from one: "mini", a path or
            "hub:owner/name@COMMIT". Then only this reference is saved.
        base_settings: of `Base.from_pretrained`, to repeat with this reference: "expect" and "variant".

    Called with `lq [B, 3, H, W]` in [-1, 1] it returns the restored batch, not clamped. It also takes a PIL image of
    an aligned face, a path, a uint8 array `[H, W, 3]`, a float array in [-1, 1] and lists of these, and returns the
    same form; 8-bit images are resized to `resolution` x `resolution`.

    >>> from lafr import Restorer
    >>> from lafr.data.packaged import aligned
    >>> restorer = Restorer.from_pretrained("mini")
    >>> restorer(aligned("astronaut")).size
    (128, 128)

    All take a `fidelity` from 0 (default), as trained, to 1, the input through the codec: decoded is
    (1 - w) z_restored + w z_lq, w = fidelity^2. (CodeFormer's sense: more fidelity, less invention.) On the validation
    faces PSNR and identity rise up to 0.5, where a LoRA scaled down, or z_lq given to the UNet, lose identity; with
    w = fidelity PSNR would fall from 0.25 on.
    """

    def __init__(
        self,
        codec: Codec,
        adapter: Adapter,
        denoiser: Denoiser,
        resolution: int,
        base: str | None = None,
        base_settings: dict | None = None,
    ):
        super().__init__()
        self.codec, self.adapter, self.denoiser = codec, adapter, denoiser
        self.resolution, self.base = resolution, base
        self.base_settings = dict.fromkeys(BASE_SETTINGS) | (base_settings or {})
        self.base_mark: str | None = None  # of the base's weights, before they are pruned: `Base.mark`
        self.trained_with: frozenset[str] = frozenset()  # origins of the pretrained networks used by its losses
        self.training_set: dict | None = None  # the record of its training faces, see `lafr.provenance`

    def forward(self, lq: ImageLike | Sequence[ImageLike], fidelity: float = 0.0) -> Any:
        """Restore images given in any form, see `as_images`; raises InputError when `fidelity` is not in 0..1."""
        # a batch of tensors is the method itself; every other form is converted to it and back
        if not isinstance(lq, Tensor) or lq.ndim != 4:
            return self.restore_images(lq, fidelity)
        # training checks nothing: its batches come from the stream, thousands of times
        if not self.training:
            require_batch(lq)
        return self.codec.decode(self.latents(lq, fidelity).z_restored)  # [B, 3, H, W]

    def latents(self, lq: Tensor, fidelity: float = 0.0) -> Latents:
        """Return every latent on the way from `lq [B, 3, H, W]`; `z_aligned` as the adapter made it."""
        require_fidelity(fidelity)
        found = self.latents_of(self.codec.encode(lq))
        if not fidelity:
            return found
        # two estimates of one face with different errors: their mean is nearer to it than either
        return replace(found, z_restored=torch.lerp(found.z_restored, found.z_lq, share_of_input(fidelity)))

    def latents_of(self, z_lq: Tensor) -> Latents:
        """Return every latent on the way from `z_lq [B, C, H/f, W/f]`, at fidelity 0."""
        z_aligned = self.adapter(z_lq)  # [B, C, H/f, W/f]
        return Latents(z_lq, z_aligned, self.denoiser(z_aligned))

    @torch.no_grad()
    def restore_images(self, given: ImageLike | Sequence[ImageLike], fidelity: float = 0.0) -> Any:
        """Restore aligned faces one by one and return them in the form they were given in, see `as_given`."""
        device = next(self.parameters()).device
        restored = []
        # one by one: the images of a list may differ in form, and memory stays that of one
        for number, image in enumerate(as_images(given)):
            lq = aligned_input(image, self.resolution, f"image {number}")  # [3, H, W]
            restored.append(self(lq[None].to(device), fidelity)[0])
        return as_given(given, restored)

    @classmethod
    def from_base(
        cls,
        folder: str | Sequence[str],
        adapter: Adapter,
        resolution: int,
        timestep: int,
        scale_input: bool = True,
        lora: dict | None = None,
        remedy: str = "give a folder in diffusers layout",
        offline: bool = False,
        sha256: Mapping[str, str] | None = None,
        expect: str | None = None,
        variant: str | None = None,
        text: str = "none",
    ) -> "Restorer":
        """Build an untrained restorer on a base model.

        Args:
            folder: of the base model, or its single file, or a hub's repository, or several in order, of which the
                first that is there is used (see `lafr.models.base.sources.find`); "mini" is the shipped miniature's.
            adapter: untrained adapter for the base's latent channels.
            resolution: side in pixels to train at.
            timestep: t*.
            scale_input: see `Denoiser`.
            lora: arguments of `Denoiser.add_lora`; no LoRA when None.
            remedy: how to get the base model, for the error when it is missing.
            offline, sha256, expect, variant: see `Base.from_pretrained`.
            text: "none", or "empty_prompt" to keep cross-attention; see `Denoiser.from_base`.
        """
        base = Base.from_pretrained(folder, remedy, offline, sha256, expect, variant, text=text != "none")
        settings = dict(expect=expect, variant=variant)
        return cls.on_base(base, adapter, resolution, timestep, scale_input, lora, text, settings)

    @classmethod
    def on_base(
        cls,
        base: Base,
        adapter: Adapter,
        resolution: int,
        timestep: int,
        scale_input: bool = True,
        lora: dict | None = None,
        text: str = "none",
        base_settings: dict | None = None,
    ) -> "Restorer":
        """Build an untrained restorer on a loaded base, whose UNet is pruned in place; arguments as of `from_base`."""
        null, mark = None if text == "none" else base.null_embedding, base.mark()
        denoiser = Denoiser.from_base(base.unet, base.scheduler, timestep, scale_input, text, null)
        if lora is not None:
            denoiser.add_lora(**lora)
        restorer = cls(base.codec(), adapter, denoiser, resolution, base.source, base_settings)
        restorer.base_mark = mark
        return restorer

    def save_pretrained(self, folder: str | Path, full: bool = False) -> None:
        """Write what was trained and a reference to the base; with `full`, everything."""
        folder, full = Path(folder), full or self.base is None
        if self.adapter.kind is None:
            raise InputError(
                "this adapter was composed by hand, and a saved model could not be loaded again; register a builder "
                "(lafr.models.adapter.register_adapter) and make it by build_adapter"
            )
        # a path is kept relative to the model, so that both can be moved together
        base = None if full or self.base is None else _from(folder, self.base)
        lora = self.denoiser.lora_config
        index = Saved(
            resolution=self.resolution,
            timestep=self.denoiser.timestep,
            scale_input=self.denoiser.scale_input,
            text=cast(Any, self.denoiser.text),  # one of two: `require_foldable` checked it
            adapter={"kind": self.adapter.kind, "settings": dict(self.adapter.settings)},
            lora=lora_settings(lora) if lora else None,
            fidelity="blend_latents",
            decoder="base" if self.codec.tiny is None else "tiny",
            base=base,
            base_settings=self.base_settings,
            trained_with=sorted(self.trained_with),
            base_mark=None if base in (None, "mini") else self.base_mark,
        )
        save_adapter(self.adapter, folder)
        if self.codec.tiny is not None:
            save_tiny(self.codec.tiny, folder / FOLDER, self.codec)
        if full:
            # the adapter is saved above in either case; the UNet here is the pruned one
            self.codec.vae.save_pretrained(folder / "codec")
            self.denoiser.save_pretrained(folder / "denoiser")
        elif lora:
            self.denoiser.save_lora(folder / "denoiser")
        if self.training_set is not None:
            write_training_set(self.training_set, folder)
        # last: a folder that was not written completely has no index, and is no model
        index.write(folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path = "mini",
        base: str | Sequence[str] | None = None,
        offline: bool = False,
        decoder: str | Path | None = None,
        merged: bool = False,
    ) -> "Restorer":
        """Load a saved restorer, frozen and in eval mode.

        Args:
            folder: of the saved restorer; "mini" is the shipped miniature at 128 px, "mini/NAME" one of its controls.
            base: sources of the base model, instead of where it was in training (see `from_base`).
            offline: never ask the network for the base model.
            decoder: "base", the base model's own; "tiny", faster and less exact; or a folder with a tiny one, see
                `lafr.models.tiny`. As the model was saved when None: "base", unless it was saved with a tiny one.
            merged: add the LoRA to the weights: equal but for rounding, loaded and run in less time, for inference.

        Raises InputError, on one line, unless the folder is exactly what `save_pretrained` writes.
        """
        folder = model_folder(folder)
        if decoder not in (None, "base", "tiny"):
            require_tiny(decoder)  # before the model, which takes longer
        require_own(folder, (INDEX, ADAPTER_WEIGHTS, "codec", "denoiser", FOLDER, TRAINING_SET))
        saved = Saved.read(folder)
        adapter = load_adapter(folder, **saved.adapter)
        if saved.base is None:
            # everything lies in the folder; the UNet is pruned already
            codec = Codec.from_pretrained(folder / "codec")
            denoiser = Denoiser.from_pretrained(
                folder / "denoiser", saved.timestep, saved.scale_input, saved.text, saved.lora, merged
            )
            restorer = cls(codec, adapter, denoiser, saved.resolution)
        else:
            # the base's UNet is pruned again, exactly as in training, before its LoRA is loaded
            restorer = cls.from_base(
                base or base_of(folder, saved.base),
                adapter,
                saved.resolution,
                saved.timestep,
                saved.scale_input,
                text=saved.text,
                offline=offline,
                remedy=f"it is the base of {str(folder)!r}: put it there, or say where it is by {setting('base')}",
                **saved.base_settings,
            )
            # of the same shapes, another base would load and restore wrongly
            if saved.base_mark not in (None, restorer.base_mark):
                raise InputError(
                    f"the base model {restorer.base!r} is not the one that {str(folder)!r} was trained on: its weights "
                    f"differ; say where that one is by {setting('base')}"
                )
            if saved.lora is not None:
                restorer.denoiser.load_lora(folder / "denoiser", merged, **saved.lora)
        require_parts_fit(restorer, str(folder / INDEX))
        restorer.trained_with = frozenset(saved.trained_with)
        restorer.training_set = read_training_set(folder)
        decoder = decoder or saved.decoder
        if decoder != "base":
            found = find_tiny(decoder, restorer.codec, folder, restorer.base, offline)
            restorer.codec.tiny = load_tiny(found, restorer.codec)
        if merged and saved.lora is not None:
            restorer.base = None  # its UNet holds the LoRA now: a save must write it
        # training turns on what it trains; loading leaves nothing trainable
        return restorer.requires_grad_(False).eval()


def model_folder(name: str | Path) -> Path:
    """Return the folder of a saved restorer; "mini" is the shipped miniature, "mini/NAME" one of its controls."""
    first, _, control = str(name).partition("/")
    return mini_folder() / (control or "lafr") if first == "mini" else Path(name)


def base_of(folder: Path, base: str) -> str:
    """Return where the base of a saved model is: a name, a path inside its folder, or one that the user vouches for.

    A model folder from elsewhere could name any path of this machine, so a path outside it must lie in one of the
    folders of the environment variable LAFR_BASES, or in `data` of the working directory. Raises InputError otherwise.
    """
    if _is_name(base):
        if base != "mini" and not REPOSITORY.fullmatch(base.removeprefix(HUB)):
            raise InputError(
                f"{str(folder / INDEX)!r} names the base model {base!r}, which is no hub:owner/name@COMMIT"
            )
        return base
    path = (folder / base).resolve()
    vouched = [Path(place).resolve() for place in os.environ.get(BASES, "data").split(os.pathsep) if place]
    if any(path.is_relative_to(place) for place in (folder.resolve(), *vouched)):
        return str(folder / base)
    raise InputError(
        f"{str(folder / INDEX)!r} names the base model {base!r}, outside its folder; if you trust it, give "
        f"{setting('base')}, or name the folder that holds it in the environment variable {BASES}"
    )


def share_of_input(fidelity: float) -> float:
    """Return the input's share of the latent that is decoded, 0..1."""
    return float(fidelity) ** 2


def require_fidelity(value: float) -> None:
    """Raise InputError unless `value` is a number from 0 to 1."""
    # True would pass as the number 1; NaN fails the comparison
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        remedy = "0 restores as trained, 1 stays nearest the input"
        raise InputError("fidelity", value, "a number from 0 to 1", remedy)


def require_parts_fit(restorer: Restorer, where: str) -> None:
    """Raise InputError unless codec, adapter and UNet agree on the latent, and the codec can divide the resolution."""
    codec, unet = restorer.codec, restorer.denoiser.unet.config
    channels = {codec.latent_channels, unet.in_channels, unet.out_channels}
    channels.add(restorer.adapter.settings.get("latent_channels", codec.latent_channels))
    if len(channels) > 1:
        raise InputError(f"{where!r} puts parts of {sorted(channels)} latent channels together; fetch or save it again")
    if restorer.resolution % codec.downscale:
        raise InputError(f"{where!r} has resolution={restorer.resolution}, no multiple of {codec.downscale}")


def _is_name(base: str) -> bool:
    return base == "mini" or base.startswith(HUB)


def _from(folder: Path, base: str) -> str:
    return base if _is_name(base) else os.path.relpath(base, folder)


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write an adapter's weights, where it has any."""
    # safetensors stores contiguous tensors only
    state = {name: value.contiguous() for name, value in adapter.state_dict().items()}
    # an empty safetensors file would be one more file to check
    if state:
        atomic_write(folder / ADAPTER_WEIGHTS, lambda temporary: save_file(state, temporary, {"format": "pt"}))


def load_adapter(folder: str | Path, kind: str, settings: Mapping[str, Any]) -> Adapter:
    """Load the adapter of a saved model.

    Raises InputError when its kind is not registered, and unless settings, names and shapes are exactly the kind's.
    """
    folder = Path(folder)
    where = f"adapter in {str(folder / INDEX)!r}"
    path = folder / ADAPTER_WEIGHTS
    try:
        builder = builder_of(kind)
        require_fit(settings, {name: p.annotation for name, p in settings_of(builder).items()}, "it")
        with torch.device("meta"):  # shapes first: settings that fit no file cost no memory
            wanted = build_adapter(kind, **settings).state_dict()
    except InputError as error:
        raise InputError(f"{where}: {error.args[0]}") from None
    state = load_exactly(path, wanted) if wanted or path.is_file() else {}
    with torch.random.fork_rng():  # the weights that a new adapter starts from are drawn, then overwritten
        adapter = build_adapter(kind, **settings)
    adapter.load_state_dict(state)
    return adapter
