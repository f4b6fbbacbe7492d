"""`LAFRPipeline`: the restorer as a diffusers pipeline."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from huggingface_hub import create_repo, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from PIL import Image
from torch import Tensor

from lafr.errors import InputError, setting
from lafr.export.model_card import CARD, model_card, read_results
from lafr.export.saved import write_index
from lafr.images import ImageLike, aligned_input, as_images, to_pil
from lafr.models.base.sources import HUB
from lafr.models.restorer import Restorer
from lafr.storage import atomic_folder, write_text

OUTPUT_TYPES = ("pil", "np", "pt")


class LAFRPipeline(DiffusionPipeline):
    """Restores aligned faces: `pipe(image).images`, with the conventions of diffusers.

    Its parts are the restorer's own, so `to`, `enable_model_cpu_offload` and tiling act on them, and what replaces one
    (`pipe.unet = torch.compile(pipe.unet)`) is used. In float32 the result is the restorer's, bit for bit. In a lower
    precision the VAE and the UNet are stored and run in it; the adapter's weights stay in float32, as close codes
    would be confused, and so does the x0 step.

    Tested on the CPU. `to("cuda")`, `to("mps")` and offloading to a real accelerator have not been run. diffusers'
    generic `DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)` loads an export
    too.

    >>> from lafr import LAFRPipeline
    >>> from lafr.data.packaged import aligned
    >>> pipe = LAFRPipeline.from_pretrained("mini")
    >>> pipe.set_progress_bar_config(disable=True)
    >>> pipe(aligned("astronaut"), fidelity=0.5).images[0].size
    (128, 128)
    >>> pipe([aligned("astronaut")] * 2, output_type="pt").images.shape
    torch.Size([2, 3, 128, 128])

    Args:
        restorer: put in eval mode. A control without weights (kind "none") has `pipe.adapter` None.
    """

    model_cpu_offload_seq = "vae->adapter->unet->tiny"  # and back to the vae: see `enable_model_cpu_offload`

    def __init__(self, restorer: Restorer):
        super().__init__()
        self.restorer = restorer.eval()
        self.register_modules(
            vae=restorer.codec.vae,
            adapter=restorer.adapter if restorer.adapter.size() else None,
            unet=restorer.denoiser.unet,
            tiny=restorer.codec.tiny,
        )

    @classmethod
    def _get_signature_keys(cls, obj: Any) -> tuple[list[str], list[str]]:
        # diffusers reads the parts' names from the constructor, which here takes them in one restorer; the first part
        # determines the pipeline's dtype
        return ["vae", "unet", "adapter", "tiny"], []

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path = "mini",
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **of_restorer: Any,
    ) -> "LAFRPipeline":
        """Load "mini", "mini/NAME", the folder of a trained model or of an export, or `OWNER/NAME` from the hub.

        Args:
            pretrained_model_name_or_path: the model.
            torch_dtype, dtype: of VAE and UNet, under diffusers' older and newer name; float32 when None.
            revision, token, cache_dir, local_files_only: of the hub, as in diffusers.
            of_restorer: passed on to `Restorer.from_pretrained`, as `base=`, `offline=` and `decoder=`.

        Raises InputError when there is no such model.
        """
        name = str(pretrained_model_name_or_path)
        if is_hub_id(name):
            offline = local_files_only or of_restorer.get("offline", False)
            name = downloaded(name, revision=revision, token=token, cache_dir=cache_dir, local_files_only=offline)
        pipe = cls(Restorer.from_pretrained(name, **of_restorer))
        chosen = dtype or torch_dtype
        return pipe if chosen is None else pipe.to(chosen)

    @torch.no_grad()
    def __call__(
        self,
        image: ImageLike | Sequence[ImageLike],
        fidelity: float = 0.0,
        batch_size: int = 8,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Restore aligned faces.

        Args:
            image: one image or several: PIL images, paths and uint8 arrays `[H, W, 3]`, which are square and resized
                to the model's resolution; float arrays `[H, W, 3]` and tensors `[3, H, W]`, or a batch of them, in
                [0, 1], which keep their size.
            fidelity: 0 restores as trained, 1 stays nearest the input; see `Restorer`.
            batch_size: images that are restored at a time.
            generator: accepted as in other pipelines and not used: restoring draws no random numbers.
            output_type: "pil": a list of PIL images; "np": `[B, H, W, 3]`; "pt": `[B, 3, H, W]` on the CPU. Arrays
                and tensors are float32 in [0, 1].
            return_dict: False returns the tuple `(images,)`.

        Raises InputError for what cannot be restored.
        """
        if output_type not in OUTPUT_TYPES:
            raise InputError("output_type", output_type, f"one of {', '.join(OUTPUT_TYPES)}")
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "1 or more")
        images = as_images(image, low=0.0)
        restorer = self._with_parts()
        device, dtype = self._execution_device, self.dtype
        restored = []
        with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
            for start in self.progress_bar(range(0, len(images), batch_size)):
                lq = stacked(images[start : start + batch_size], restorer.resolution, start)  # [B, 3, H, W]
                restored.append(restorer(lq.to(device, torch.float32), fidelity).cpu())
        self.maybe_free_model_hooks()
        result = converted(torch.cat(restored), output_type)
        return ImagePipelineOutput(images=result) if return_dict else (result,)

    def _with_parts(self, compiled: bool = True) -> Restorer:
        """Return the restorer with the parts that the pipeline has now; `compiled=False` takes their wrappers off."""
        vae, adapter, unet = (
            part if compiled else getattr(part, "_orig_mod", part) for part in (self.vae, self.adapter, self.unet)
        )
        self.restorer.codec.vae, self.restorer.denoiser.unet = vae, unet
        self.restorer.codec.tiny = self.tiny if compiled else getattr(self.tiny, "_orig_mod", self.tiny)
        if adapter is not None:
            self.restorer.adapter = adapter
        return self.restorer

    def to(self, *args: Any, **kwargs: Any) -> "LAFRPipeline":
        """Move or cast the parts, as `DiffusionPipeline.to`; the adapter's weights stay in float32."""
        exact = None if self.adapter is None else self.adapter.state_dict()
        super().to(*args, **kwargs)
        if exact and self.adapter.dtype != torch.float32:
            self.adapter.float().load_state_dict(exact)  # a cast and back would have rounded them
        return self

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Keep on the accelerator only the part that runs; it needs an accelerator.

        diffusers offloads each part when the next one in the sequence runs, and the VAE runs twice, at both ends: the
        UNet would stay on the accelerator while the decoder, which needs the most memory, runs. So the sequence is
        closed to a ring here.
        """
        super().enable_model_cpu_offload(gpu_id, device)
        self._all_hooks[0].hook.prev_module_hook = self._all_hooks[-1]

    def enable_vae_tiling(self, tile: int | None = None) -> None:
        """Encode and decode in overlapping tiles of `tile` pixels (default: the VAE's own `sample_size`).

        A tiny decoder decodes whole images: it needs a tenth of the memory.

        An image of one tile is not changed; several tiles differ slightly from the whole image, as their group
        normalisations see less.
        """
        self.vae.enable_tiling()
        if tile is not None:
            factor = self.restorer.codec.downscale
            if tile < 2 * factor or tile % factor:
                allowed = f"a multiple of {factor}, the VAE's downscale factor, and at least {2 * factor}"
                raise InputError("tile", tile, allowed)
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

        def fill(temporary: Path) -> None:
            restorer.save_pretrained(temporary, full=full)
            write_index(temporary)
            write_text(temporary / CARD, card)

        atomic_folder(folder, fill)

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        **of_save: Any,
    ) -> str:
        """Upload what `save_pretrained(..., **of_save)` writes, model card included; returns the commit's address.

        Raises InputError when the base is a folder of this machine, which nobody else has: push with `full=True`.
        """
        if not of_save.get("full") and not is_portable(self.restorer.base):
            raise InputError(
                f"the base model is the folder {self.restorer.base!r}, which the hub does not have",
                remedy=f"give {setting('full', True)}",
            )
        repo_id = create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        with TemporaryDirectory() as temporary:
            folder = Path(temporary, repo_id.rpartition("/")[2])
            self.save_pretrained(folder, **of_save)
            return self._upload_folder(folder, repo_id, token=token, commit_message=commit_message, create_pr=create_pr)


def is_hub_id(name: str) -> bool:
    """Return whether a model's name is `OWNER/NAME` and neither a folder here nor the miniature."""
    known = name.partition("/")[0] == "mini" or Path(name).exists()
    return not known and re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def downloaded(repo_id: str, **options: Any) -> str:
    """Return the folder of a hub model in the cache: settings and safetensors, nothing that could run code."""
    try:
        return snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"], **options)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"model {repo_id!r} is neither a folder here nor can it be downloaded from the hub ({reason}); "
            "give the folder of a trained model, or mini"
        ) from None


def stacked(images: Sequence[Image.Image | Tensor], resolution: int, first: int) -> Tensor:
    """Return images of `as_images` as one batch `[B, 3, H, W]` in [-1, 1]; `first` is the number of the first."""
    inputs = [aligned_input(image, resolution, f"image {first + i}") for i, image in enumerate(images)]
    sizes = sorted({tuple(one.shape[1:]) for one in inputs})
    if len(sizes) > 1:
        raise InputError(f"the images have different sizes, {sizes}; resize them to {resolution} x {resolution}")
    return torch.stack(inputs)


def converted(restored: Tensor, output_type: str) -> list[Image.Image] | np.ndarray | Tensor:
    """Return `restored [B, 3, H, W]` in [-1, 1] as `LAFRPipeline.__call__` says."""
    if output_type == "pil":
        return [to_pil(image) for image in restored]
    unit = (restored.float() / 2 + 0.5).clamp(0, 1)  # [B, 3, H, W] in [0, 1]
    return unit.permute(0, 2, 3, 1).numpy() if output_type == "np" else unit


def fused(restorer: Restorer) -> Restorer:
    """Return the restorer with its LoRA merged into a copy of the UNet; the given one is not changed."""
    if restorer.denoiser.lora_config is None:
        return restorer
    denoiser = copy.deepcopy(restorer.denoiser)
    denoiser.merge_lora()
    merged = Restorer(restorer.codec, restorer.adapter, denoiser, restorer.resolution)
    merged.trained_with, merged.training_set = restorer.trained_with, restorer.training_set
    return merged.requires_grad_(False).eval()


def require_free(folder: Path, own: Sequence[str] = ("model_index.json", "restorer.onnx")) -> None:
    """Raise InputError unless an export may be written there: nothing, an empty folder or an earlier export."""
    if folder.is_dir():
        free = not any(folder.iterdir()) or any((folder / name).is_file() for name in own)
    else:
        free = not folder.exists()
    if not free:
        raise InputError(f"{str(folder)!r} holds files other than an earlier export; choose a new folder")


def is_portable(base: str | None) -> bool:
    """Return whether another machine can find the base: inside the export, in this package or on the hub."""
    return base is None or base == "mini" or base.startswith(HUB)
