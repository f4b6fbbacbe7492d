"""The diffusers pipeline: `LAFRPipeline`, a thin skin over the restorer with diffusers' own conveniences."""

import copy
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import create_repo, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from torch import Tensor

from lafr.errors import InputError
from lafr.export.model_card import CARD, model_card, read_results
from lafr.images import from_pil, require_square, resize_pil, to_pil
from lafr.models.base.sources import HUB
from lafr.models.restorer import Restorer
from lafr.storage import atomic_folder

OUTPUT_TYPES = ("pil", "np", "pt")


class LAFRPipeline(DiffusionPipeline):
    """Restores aligned faces: `pipe(image).images`.

    Its parts are the restorer's own, so `to`, `enable_model_cpu_offload` and tiling act on them, and what replaces one
    (`pipe.unet = torch.compile(pipe.unet)`) is used. In float32 the result is the restorer's, bit for bit. In a lower
    precision the VAE and the UNet are stored and run in it; the adapter's weights stay in float32, as close codes
    would be confused, and so does the x0 step.

    Tested on the CPU. `to("cuda")`, `to("mps")` and offloading to a real accelerator have not been run. diffusers'
    generic `DiffusionPipeline.from_pretrained` does not know this class: load with `LAFRPipeline.from_pretrained`.

    Args:
        restorer: put in eval mode. A control without weights (`NoAdapter`) has `pipe.adapter` None.
    """

    model_cpu_offload_seq = "vae->adapter->unet"  # and back to the vae: see `enable_model_cpu_offload`

    def __init__(self, restorer: Restorer):
        super().__init__()
        self.restorer = restorer.eval()
        self.register_modules(
            vae=restorer.codec.vae,
            adapter=restorer.adapter if restorer.adapter.size() else None,
            unet=restorer.denoiser.unet,
        )

    @classmethod
    def _get_signature_keys(cls, obj) -> tuple[list[str], list[str]]:
        # diffusers reads the parts' names from the constructor, which here takes them in one restorer; the first part
        # tells the pipeline's dtype
        return ["vae", "unet", "adapter"], []

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "mini", dtype: torch.dtype | None = None, revision: str | None = None,
        token: str | bool | None = None, cache_dir: str | Path | None = None, local_files_only: bool = False,
        **of_restorer,
    ) -> "LAFRPipeline":  # fmt: skip
        """Load "mini", "mini/NAME", the folder of a trained model or of an export, or `OWNER/NAME` from the hub.

        Args:
            name: of the model.
            dtype: of VAE and UNet; float32 when None.
            revision, token, cache_dir, local_files_only: of the hub, as diffusers takes them.
            of_restorer: passed on to `Restorer.from_pretrained`, as `base=` and `offline=`.

        Raises InputError when there is no such model.
        """
        if is_hub_id(str(name)):
            offline = local_files_only or of_restorer.get("offline", False)
            name = downloaded(str(name), revision=revision, token=token, cache_dir=cache_dir, local_files_only=offline)
        pipe = cls(Restorer.from_pretrained(name, **of_restorer))
        return pipe if dtype is None else pipe.to(dtype)

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | Sequence[Image.Image] | Tensor,
        batch_size: int = 8,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Restore aligned faces.

        Args:
            image: a square picture or several, resized to the model's resolution; or `[B, 3, H, W]` in [-1, 1].
            batch_size: images that go through at a time.
            output_type: "pil": a list of pictures; "np": `[B, H, W, 3]` in [0, 1], as diffusers has it; "pt":
                `[B, 3, H, W]` in [-1, 1], on the CPU, not clamped, as the restorer has it.
            return_dict: False returns the tuple `(images,)`.

        Raises InputError for what cannot be restored.
        """
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"output_type={output_type!r} is unknown; choose one of {', '.join(OUTPUT_TYPES)}")
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size} restores nothing; give 1 or more")
        restorer = self._with_parts()
        device, dtype = self._execution_device, self.dtype
        restored = []
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            for lq in self.progress_bar(list(batches(image, restorer.resolution, batch_size))):
                restored.append(restorer(lq.to(device, torch.float32)).cpu())
        self.maybe_free_model_hooks()
        images = converted(torch.cat(restored), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _with_parts(self, compiled: bool = True) -> Restorer:
        """Return the restorer with the parts that the pipeline has now; `compiled=False` takes their wrappers off."""
        vae, adapter, unet = (
            part if compiled else getattr(part, "_orig_mod", part) for part in (self.vae, self.adapter, self.unet)
        )
        self.restorer.codec.vae, self.restorer.denoiser.unet = vae, unet
        if adapter is not None:
            self.restorer.adapter = adapter
        return self.restorer

    def to(self, *args, **kwargs) -> "LAFRPipeline":
        """Move or cast the parts, as `DiffusionPipeline.to`; the adapter's weights stay in float32."""
        exact = None if self.adapter is None else self.adapter.state_dict()
        super().to(*args, **kwargs)
        if exact and self.adapter.dtype != torch.float32:
            self.adapter.float().load_state_dict(exact)  # a cast and back would have rounded them
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep on the accelerator only the part that runs; it needs an accelerator.

        diffusers offloads along a line and ignores the second visit of the VAE, so the UNet would stay beside the
        decoder, which needs the most memory: the line is closed to a ring here.
        """
        super().enable_model_cpu_offload(gpu_id, device)
        self._all_hooks[0].hook.prev_module_hook = self._all_hooks[-1]

    def enable_vae_tiling(self, tile: int | None = None) -> None:
        """Encode and decode in overlapping tiles of `tile` pixels (default: the VAE's own `sample_size`).

        An image of one tile is not changed; several tiles differ slightly from the whole image, as their group
        normalisations see less.
        """
        self.vae.enable_tiling()
        if tile is not None:
            factor = self.restorer.codec.downscale
            if tile < 2 * factor or tile % factor:
                raise InputError(f"tile={tile} is not a multiple of {factor}, the VAE's downscale factor, of 2 or more")
            self.vae.tile_sample_min_size, self.vae.tile_latent_min_size = tile, tile // factor

    def disable_vae_tiling(self) -> None:
        """Encode and decode whole images again."""
        self.vae.disable_tiling()

    def enable_vae_slicing(self) -> None:
        """Encode and decode one image of a batch at a time."""
        self.vae.enable_slicing()

    def disable_vae_slicing(self) -> None:
        """Encode and decode batches again."""
        self.vae.disable_slicing()

    def save_pretrained(
        self,
        save_directory: str | Path,
        full: bool = False,
        results: Sequence[str | Path] = (),
        licence: str | None = None,
        training_data: str | None = None,
    ) -> None:
        """Write what was trained, a reference to the base and a model card; all or nothing.

        Args:
            save_directory: new, empty or an earlier export, which is replaced.
            full: fuse the LoRA and write everything, so that no base is needed.
            results: files that `scripts/eval.py` wrote for this model: the card's tables.
            licence: of the weights, by its name on the hub.
            training_data: what the model learned from, for the card.

        Raises InputError when the folder holds something else or a result cannot be read.
        """
        folder = Path(save_directory)
        require_free(folder)
        trained = self._with_parts(compiled=False)
        card = model_card(trained, full, read_results(results), licence, training_data)
        restorer = fused(trained) if full else trained

        def fill(aside: Path) -> None:
            restorer.save_pretrained(aside, full=full)
            self.save_config(aside)
            (aside / CARD).write_text(card)

        atomic_folder(folder, fill)

    def push_to_hub(
        self, repo_id: str, private: bool | None = None, token: str | None = None, commit_message: str | None = None,
        create_pr: bool = False, **of_save,
    ) -> str:  # fmt: skip
        """Upload what `save_pretrained(..., **of_save)` writes, model card included; returns the commit's address.

        Raises InputError when the base is a folder of this machine, which nobody else has: push with `full=True`.
        """
        if not of_save.get("full") and not is_portable(self.restorer.base):
            raise InputError(
                f"the base model is the folder {self.restorer.base!r}, which the hub does not have; give full=True"
            )
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as aside:
            folder = Path(aside, repo_id.rpartition("/")[2])
            self.save_pretrained(folder, **of_save)
            return self._upload_folder(folder, repo_id, token=token, commit_message=commit_message, create_pr=create_pr)


def is_hub_id(name: str) -> bool:
    """Return whether a model's name is `OWNER/NAME` and neither a folder here nor the miniature."""
    known = name.partition("/")[0] == "mini" or Path(name).exists()
    return not known and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def downloaded(repo_id: str, **options) -> str:
    """Return the folder of a hub model in the cache: settings and safetensors, nothing that could run code."""
    try:
        return snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"], **options)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"model {repo_id!r} is neither a folder here nor can it be had from the hub ({reason}); "
            "give the folder of a trained model, or mini"
        ) from None


def batches(image: Image.Image | Sequence[Image.Image] | Tensor, resolution: int, size: int) -> Iterator[Tensor]:
    """Yield `[at most size, 3, H, W]` in [-1, 1]; raises InputError for what is no aligned face."""
    if isinstance(image, Tensor):
        require_batch(image)
        yield from image.split(size)
        return
    pictures = [image] if isinstance(image, Image.Image) else image
    if not isinstance(pictures, list | tuple) or not pictures:
        raise InputError(f"{pictures!r:.80} is no picture; give a PIL image, a list of them or a [B, 3, H, W] tensor")
    for number, picture in enumerate(pictures):
        if not isinstance(picture, Image.Image):
            raise InputError(f"image {number} is {picture!r:.80}; open it with PIL.Image.open first")
        require_square(picture, f"image {number}")
    for start in range(0, len(pictures), size):
        yield torch.stack([from_pil(resize_pil(picture, resolution)) for picture in pictures[start : start + size]])


def require_batch(image: Tensor) -> None:
    """Raise InputError unless `image` is `[B, 3, H, W]` in [-1, 1]."""
    if image.ndim != 4 or image.shape[1] != 3 or not len(image) or not image.is_floating_point():
        kind = f"{list(image.shape)} of {image.dtype}"
        raise InputError(f"the batch is {kind}; give [B, 3, H, W] of float32 in [-1, 1] (lafr.images.from_pil)")
    if not bool((image.abs() <= 1).all()):
        low, high = image.min().item(), image.max().item()
        raise InputError(f"the batch holds values from {low:.4g} to {high:.4g}; clamp or scale it to [-1, 1]")


def converted(restored: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Return `restored [B, 3, H, W]` in [-1, 1] as `LAFRPipeline.__call__` says."""
    if output_type == "pil":
        return [to_pil(image) for image in restored]
    if output_type == "np":
        return ((restored.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 1).numpy()
    return restored


def fused(restorer: Restorer) -> Restorer:
    """Return the restorer with its LoRA merged into a copy of the UNet; the one given is left as it is."""
    if restorer.denoiser.lora_config is None:
        return restorer
    denoiser = copy.deepcopy(restorer.denoiser)
    denoiser.merge_lora()
    merged = Restorer(restorer.codec, restorer.adapter, denoiser, restorer.resolution)
    merged.trained_with = restorer.trained_with
    return merged.requires_grad_(False).eval()


def require_free(folder: Path, own: Sequence[str] = ("model_index.json", "restorer.onnx")) -> None:
    """Raise InputError unless an export may be written there: nothing, an empty folder or an earlier export."""
    if folder.is_dir():
        free = not any(folder.iterdir()) or any((folder / name).is_file() for name in own)
    else:
        free = not folder.exists()
    if not free:
        raise InputError(f"{str(folder)!r} holds something else than an earlier export; choose a new folder")


def is_portable(base: str | None) -> bool:
    """Return whether another machine can find the base: inside the export, in this package or on the hub."""
    return base is None or base == "mini" or base.startswith(HUB)
