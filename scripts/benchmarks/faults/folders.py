"""Hostile model folders: each is refused on one line that names its file, and none runs code of its own."""

import json
import math
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from lafr.errors import InputError
from lafr.export.pipeline import LAFRPipeline
from lafr.models.adapter import build_adapter
from lafr.models.base.model import Base, new_base
from lafr.models.restorer import BASES, Restorer
from scripts.benchmarks.faults import Trial

SIZE = 32
TINY: dict[str, Any] = dict(
    vae=dict(
        block_out_channels=[8, 16, 16], down_block_types=["DownEncoderBlock2D"] * 3, layers_per_block=1,
        up_block_types=["UpDecoderBlock2D"] * 3, norm_num_groups=4, sample_size=SIZE, scaling_factor=1.7,
    ),
    unet=dict(
        sample_size=8, block_out_channels=[16, 32], down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], layers_per_block=1, attention_head_dim=2,
        cross_attention_dim=8, norm_num_groups=4,
    ),
    scheduler=dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
)  # fmt: skip
ADAPTER = dict(latent_channels=4, width=16, code_dim=8, extractor_blocks=1, mapper_blocks=1, num_codes=16)

INDEX, CODES = "lafr.json", "adapter.safetensors"
LORA = "denoiser/pytorch_lora_weights.safetensors"
CODEC, DENOISER = "codec/config.json", "denoiser/config.json"
CODEC_WEIGHTS, DENOISER_WEIGHTS = "codec/diffusion_pytorch_model.safetensors", "denoiser/denoiser.safetensors"
TINY_DECODER, TINY_WEIGHTS = "tiny/config.json", "tiny/diffusion_pytorch_model.safetensors"
VAE, UNET, SCHEDULER = "vae/config.json", "unet/config.json", "scheduler/scheduler_config.json"
VAE_WEIGHTS, UNET_WEIGHTS = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("vae", "unet"))
NULL, TEXT, TOKENIZER = "null_embedding.safetensors", "text_encoder/config.json", "tokenizer/tokenizer_config.json"
TEXT_WEIGHTS = "text_encoder/model.safetensors"

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A damage to one of the sound folders.

    Args:
        what: the table's row.
        kind: of the folder, a key of `LOADERS`.
        file: what the one line must name.
        change: makes the folder hostile.
    """

    what: str
    kind: str
    file: str
    change: Change


LOADERS: dict[str, Callable[[Path], Any]] = {
    "reference": Restorer.from_pretrained,  # what was trained and a reference to the base, here inside the folder
    "full": Restorer.from_pretrained,
    "tiny": Restorer.from_pretrained,
    "export": LAFRPipeline.from_pretrained,
    "diffusers": Base.from_pretrained,
    "text": lambda folder: Base.from_pretrained(folder, text=True),
    "checkpoint": lambda folder: Base.from_pretrained(folder / "model.ckpt"),
    "single": lambda folder: Base.from_pretrained(folder / "model.safetensors"),
}


def sound(place: Path) -> None:
    """Write a sound folder of each kind but the single files', with a tiny model of random weights."""
    base = new_base(**TINY)
    for kind in ("reference/base", "diffusers", "text"):
        base.save_pretrained(place / kind)
    add_text(place / "text")
    adapter = build_adapter("codebook", **ADAPTER)
    adapter.quantizer.initialise(torch.randn(4, 8, 8, 8), torch.Generator().manual_seed(0))
    lora = dict(rank=2, alpha=4)
    restorer = Restorer.from_base(str(place / "reference" / "base"), adapter, SIZE, timestep=200, lora=lora).eval()
    restorer.save_pretrained(place / "reference")
    restorer.save_pretrained(place / "full", full=True)
    blocks = dict(encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8))
    restorer.codec.tiny = AutoencoderTiny(**blocks, num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
    restorer.save_pretrained(place / "tiny", full=True)
    restorer.codec.tiny = None
    LAFRPipeline(restorer).save_pretrained(place / "export", full=True)
    for kind in ("checkpoint", "single"):
        (place / kind).mkdir()


def add_text(folder: Path) -> None:
    """Put a tiny text encoder and tokenizer next to a base in place of its stored null condition."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    (folder / NULL).unlink()
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "!": 2, "a</w>": 3, "a": 4}
    (folder / "words").mkdir()
    (folder / "words" / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    files = [str(folder / "words" / name) for name in ("vocab.json", "merges.txt")]
    CLIPTokenizer(*files, model_max_length=6, pad_token="!").save_pretrained(folder / "tokenizer")
    size = dict(vocab_size=5, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPTextConfig(**size, max_position_embeddings=6, bos_token_id=0, eos_token_id=1)
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")


# --- what makes a folder hostile --------------------------------------------------------------------------------------


def sets(file: str, *keys: str, value: object) -> Change:
    """Return a change that sets a value in a JSON file."""

    def change(folder: Path) -> None:
        record = json.loads((folder / file).read_text(encoding="utf-8"))
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        (folder / file).write_text(json.dumps(record), encoding="utf-8")

    return change


def drops(file: str, key: str) -> Change:
    """Return a change that deletes a key of a JSON file."""

    def change(folder: Path) -> None:
        record = json.loads((folder / file).read_text(encoding="utf-8"))
        del record[key]
        (folder / file).write_text(json.dumps(record), encoding="utf-8")

    return change


def holds(file: str, content: bytes) -> Change:
    """Return a change that replaces a file's content."""
    return lambda folder: (folder / file).write_bytes(content)


def tensors(file: str, change: Callable[[dict], object]) -> Change:
    """Return a change of a file's tensors, a dict that `change` changes in place."""

    def apply(folder: Path) -> None:
        state = load_file(folder / file)
        change(state)
        save_file(state, folder / file, {"format": "pt"})

    return apply


def first(state: dict) -> str:
    """Return the first name of floating-point weights."""
    return min(name for name, value in state.items() if value.is_floating_point())


def filled(file: str, number: float) -> Change:
    """Return a change that puts one value, NaN or infinity, into weights."""
    return tensors(file, lambda state: state[first(state)].view(-1)[-1:].fill_(number))


def linked(file: str, target: str) -> Change:
    """Return a change that makes a file or folder a link; `OUTSIDE` in `target` is a folder next to the model's."""

    def change(folder: Path) -> None:
        path, outside = folder / file, folder.parent / "outside"
        outside.mkdir()
        path.rename(outside / path.name)
        path.symlink_to(target.replace("OUTSIDE", str(outside)).replace("NAME", path.name))

    return change


def cut(file: str, keep: int) -> Change:
    """Return a change that leaves the first bytes of a file."""
    return lambda folder: (folder / file).write_bytes((folder / file).read_bytes()[:keep])


def removed(file: str) -> Change:
    """Return a change that removes a file."""
    return lambda folder: (folder / file).unlink()


def piped(file: str) -> Change:
    """Return a change that puts a FIFO, which blocks its reader, in a file's place."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return change


def in_place(file: str) -> Change:
    """Return a change that puts a folder in a file's place."""

    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


def header(file: str, shape: list[int], size: int) -> Change:
    """Return a change that writes a sparse safetensors file: a header that claims `size` bytes of zeros."""

    def change(folder: Path) -> None:
        text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        with open(folder / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            out.truncate(8 + len(text) + size)

    return change


def both(*changes: Change) -> Change:
    """Return a change that does several."""
    return lambda folder: [change(folder) for change in changes]


class Runs:
    """A pickle of it writes a file when it is loaded."""

    def __init__(self, ran: Path):
        self.ran = ran

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.ran),)


def pickled(file: str, remove: str | None = None) -> Change:
    """Return a change that writes a pickle that runs code, in place of `remove`."""

    def change(folder: Path) -> None:
        (folder / file).write_bytes(pickle.dumps(Runs(ran(folder))))
        if remove:
            (folder / remove).unlink()

    return change


def ran(folder: Path) -> Path:
    """Return what code of a folder's own would make."""
    return folder.parent / "ran"


def saved(content: Any) -> Change:
    """Return a change that writes `model.ckpt` as torch does."""
    return lambda folder: torch.save(content, folder / "model.ckpt")


def outside_base(folder: Path) -> None:
    """Move the base out of the model's folder and name it by `..`."""
    (folder / "base").rename(folder.parent / "elsewhere")
    sets(INDEX, "base", value="../elsewhere")(folder)


def outside_shards(part: str) -> Change:
    """Return a change that lets an index name weights outside the folder; the file next to it is gone."""

    def change(folder: Path) -> None:
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        path = folder / part / f"{stem}.safetensors"
        names = list(load_file(path))
        path.rename(folder.parent / "shard.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../../shard.safetensors")}
        (folder / part / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        if part == "text_encoder":  # so that there is a file of the right name
            save_file({"a": torch.zeros(1)}, folder / part / "model-00001-of-00001.safetensors")

    return change


def other_latents(folder: Path) -> None:
    """Give an adapter of 8 latent channels to a model of 4: each part fits its own file."""
    adapter = build_adapter("codebook", **ADAPTER | {"latent_channels": 8})
    save_file({k: v.contiguous() for k, v in adapter.state_dict().items()}, folder / CODES)
    sets(INDEX, "adapter", "settings", "latent_channels", value=8)(folder)


def shared_number(folder: Path) -> None:
    """Write a checkpoint whose weights are views of one number that claim absurd shapes."""
    state = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20, 3, 3)}
    torch.save(state, folder / "model.ckpt")


def endless(folder: Path) -> None:
    """Write a checkpoint that nests itself."""
    state: dict = {}
    state["state_dict"] = state
    torch.save(state, folder / "model.ckpt")


DEEP = b"[" * 100_000 + b"]" * 100_000
NAN = math.nan
KIND, READ, WEIGHTS, SHAPE, SIZES, FORMAT = (
    "names code to import", "reads outside itself", "weights missing, unexpected or not finite", "wrong shape or type",
    "absurd size", "unknown format or value",
)  # fmt: skip

CASES = [
    # code
    Case(KIND, "reference", INDEX, sets(INDEX, "adapter", "kind", value="os.system")),
    Case(KIND, "reference", INDEX, sets(INDEX, "adapter", "kind", value="evil")),
    Case(KIND, "reference", INDEX, sets(INDEX, "adapter", value="lafr.models.adapter.Adapter")),
    Case(KIND, "reference", INDEX, sets(INDEX, "adapter", "_target_", value="os.system")),
    Case(KIND, "full", DENOISER, sets(DENOISER, "_target_", value="os.system")),
    Case(KIND, "full", DENOISER, sets(DENOISER, "unet", "auto_map", value={"AutoModel": "evil.Model"})),
    Case(KIND, "full", CODEC, sets(CODEC, "auto_map", value={"AutoModel": "evil.Model"})),
    Case(KIND, "full", CODEC, sets(CODEC, "act_fn", value="evil.act")),
    Case(KIND, "export", INDEX, sets(INDEX, "adapter", "kind", value="pipeline")),
    Case(KIND, "diffusers", UNET, sets(UNET, "quantization_config", value={"quant_method": "evil"})),
    Case(KIND, "diffusers", UNET, sets(UNET, "down_block_types", value=["evil.Block", "DownBlock2D"])),
    Case(KIND, "reference", CODES, pickled("adapter.bin", remove=CODES)),
    Case(KIND, "reference", CODES, pickled(CODES)),
    Case(KIND, "full", DENOISER_WEIGHTS, pickled(DENOISER_WEIGHTS)),
    Case(KIND, "diffusers", "unet", pickled("unet/diffusion_pytorch_model.bin", remove=UNET_WEIGHTS)),
    Case(KIND, "checkpoint", "model.ckpt", pickled("model.ckpt")),
    # outside
    Case(READ, "reference", INDEX, outside_base),
    Case(READ, "reference", INDEX, sets(INDEX, "base", value="/etc")),
    Case(READ, "reference", INDEX, sets(INDEX, "base", value="hub:../../etc")),
    Case(READ, "reference", INDEX, linked(INDEX, "OUTSIDE/NAME")),
    Case(READ, "reference", CODES, linked(CODES, "OUTSIDE/NAME")),
    Case(READ, "reference", CODES, linked(CODES, "../outside/NAME")),
    Case(READ, "reference", "denoiser", linked("denoiser", "OUTSIDE/NAME")),
    Case(READ, "reference", "base/vae", linked("base/vae", "OUTSIDE/NAME")),
    Case(READ, "reference", INDEX, linked("base", "OUTSIDE/NAME")),
    Case(READ, "reference", LORA, linked(LORA, "/dev/zero")),
    Case(READ, "full", CODEC_WEIGHTS, linked(CODEC_WEIGHTS, "OUTSIDE/NAME")),
    Case(READ, "full", CODEC, linked(CODEC, "/etc/passwd")),
    Case(READ, "full", CODEC, piped(CODEC)),
    Case(READ, "export", DENOISER_WEIGHTS, linked(DENOISER_WEIGHTS, "NAME")),  # to itself
    Case(READ, "export", DENOISER, piped(DENOISER)),
    Case(READ, "diffusers", UNET_WEIGHTS, linked(UNET_WEIGHTS, "OUTSIDE/NAME")),
    Case(READ, "diffusers", NULL, linked(NULL, "OUTSIDE/NAME")),
    Case(READ, "diffusers", "unet", outside_shards("unet")),
    Case(READ, "text", "text_encoder", outside_shards("text_encoder")),
    Case(READ, "tiny", TINY_WEIGHTS, linked(TINY_WEIGHTS, "OUTSIDE/NAME")),
    # weights
    Case(WEIGHTS, "reference", CODES, removed(CODES)),
    Case(WEIGHTS, "reference", CODES, tensors(CODES, lambda state: state.pop(first(state)))),
    Case(WEIGHTS, "reference", CODES, tensors(CODES, lambda state: state.update(extra=torch.zeros(1)))),
    Case(WEIGHTS, "reference", CODES, filled(CODES, NAN)),
    Case(WEIGHTS, "reference", LORA, removed(LORA)),
    Case(WEIGHTS, "reference", LORA, tensors(LORA, lambda state: state.pop(first(state)))),
    Case(WEIGHTS, "reference", LORA, tensors(LORA, lambda state: state.update(extra=torch.zeros(1)))),
    Case(WEIGHTS, "reference", LORA, filled(LORA, math.inf)),
    Case(WEIGHTS, "reference", "base/vae", filled(f"base/{VAE_WEIGHTS}", NAN)),
    Case(WEIGHTS, "full", CODEC_WEIGHTS, tensors(CODEC_WEIGHTS, lambda state: state.pop(first(state)))),
    Case(WEIGHTS, "full", CODEC_WEIGHTS, tensors(CODEC_WEIGHTS, lambda state: state.update(extra=torch.zeros(1)))),
    Case(WEIGHTS, "full", CODEC_WEIGHTS, filled(CODEC_WEIGHTS, -math.inf)),
    Case(WEIGHTS, "full", CODEC_WEIGHTS, removed(CODEC_WEIGHTS)),
    Case(WEIGHTS, "full", DENOISER_WEIGHTS, tensors(DENOISER_WEIGHTS, lambda state: state.pop(first(state)))),
    Case(WEIGHTS, "full", DENOISER_WEIGHTS, filled(DENOISER_WEIGHTS, NAN)),
    Case(WEIGHTS, "full", DENOISER_WEIGHTS, cut(DENOISER_WEIGHTS, 500)),
    Case(WEIGHTS, "full", DENOISER_WEIGHTS, cut(DENOISER_WEIGHTS, 0)),
    Case(WEIGHTS, "export", CODES, in_place(CODES)),
    Case(WEIGHTS, "diffusers", UNET_WEIGHTS, tensors(UNET_WEIGHTS, lambda state: state.pop(first(state)))),
    Case(WEIGHTS, "diffusers", UNET_WEIGHTS, filled(UNET_WEIGHTS, NAN)),
    Case(WEIGHTS, "diffusers", "unet", in_place(UNET_WEIGHTS)),
    Case(
        WEIGHTS, "diffusers", "a second time",
        lambda folder: shutil.copy(folder / VAE_WEIGHTS, folder / VAE_WEIGHTS.replace(".s", "-00001-of-00001.s")),
    ),
    Case(WEIGHTS, "diffusers", NULL, filled(NULL, NAN)),
    Case(WEIGHTS, "diffusers", NULL, tensors(NULL, lambda state: state.update(b=torch.zeros(1, 2, 8)))),
    Case(WEIGHTS, "text", "text_encoder", tensors(TEXT_WEIGHTS, lambda state: state.pop(first(state)))),
    Case(WEIGHTS, "text", "text_encoder", filled(TEXT_WEIGHTS, NAN)),
    Case(WEIGHTS, "tiny", TINY_WEIGHTS, filled(TINY_WEIGHTS, NAN)),
    Case(WEIGHTS, "tiny", TINY_WEIGHTS, tensors(TINY_WEIGHTS, lambda state: state.pop(first(state)))),
    # shapes
    Case(SHAPE, "reference", CODES, tensors(CODES, lambda state: state.update({first(state): torch.zeros(3)}))),
    Case(SHAPE, "reference", CODES, tensors(CODES, lambda s: s.update({first(s): s[first(s)].long()}))),
    Case(SHAPE, "reference", INDEX, other_latents),
    Case(SHAPE, "reference", LORA, sets(INDEX, "lora", "rank", value=3)),
    Case(SHAPE, "reference", "denoiser", sets(INDEX, "lora", "targets", value=["nothing"])),
    Case(SHAPE, "full", INDEX, sets(INDEX, "resolution", value=33)),
    Case(SHAPE, "full", CODEC_WEIGHTS, sets(CODEC, "block_out_channels", value=[8, 16, 32])),
    Case(SHAPE, "full", CODEC, sets(CODEC, "block_out_channels", value=[8])),
    Case(SHAPE, "full", CODEC, sets(CODEC, "in_channels", value=4)),
    Case(SHAPE, "full", DENOISER, sets(DENOISER, "unet", "class_embed_type", value="timestep")),
    Case(SHAPE, "full", DENOISER, sets(DENOISER, "unet", "norm_num_groups", value=0)),
    Case(SHAPE, "diffusers", NULL, tensors(NULL, lambda state: state.update(null_embedding=torch.zeros(2, 4, 8)))),
    Case(SHAPE, "single", "model.safetensors", lambda folder: save_file(
        {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(3)}, folder / "model.safetensors"
    )),
    # sizes
    Case(SIZES, "reference", INDEX, sets(INDEX, "resolution", value=10**9)),
    Case(SIZES, "reference", INDEX, sets(INDEX, "adapter", "settings", "num_codes", value=10**12)),
    Case(SIZES, "reference", INDEX, sets(INDEX, "lora", "rank", value=10**9)),
    Case(SIZES, "reference", INDEX, sets(INDEX, "trained_with", value=["a"] * 5000)),
    Case(SIZES, "reference", CODES, header(CODES, [1 << 20, 1 << 18], 1 << 40)),
    Case(SIZES, "reference", CODES, holds(CODES, struct.pack("<Q", 1 << 60))),
    Case(SIZES, "full", CODEC, sets(CODEC, "layers_per_block", value=10**9)),
    Case(SIZES, "full", CODEC, sets(CODEC, "block_out_channels", value=[10**9] * 3)),
    Case(SIZES, "full", CODEC, sets(CODEC, "block_out_channels", value=[8] * 10_000)),
    Case(SIZES, "full", CODEC, holds(CODEC, b" " * (2 << 20))),
    Case(SIZES, "full", DENOISER, sets(DENOISER, "prompt_tokens", value=10**9)),
    Case(SIZES, "full", DENOISER, sets(DENOISER, "unet", "transformer_layers_per_block", value=[10**6, 10**6])),
    Case(SIZES, "full", DENOISER, sets(DENOISER, "unet", "block_out_channels", value=[1 << 19, 1 << 19])),
    Case(SIZES, "diffusers", SCHEDULER, sets(SCHEDULER, "num_train_timesteps", value=10**12)),
    Case(SIZES, "diffusers", SCHEDULER, sets(SCHEDULER, "trained_betas", value=[0.1] * 10_000)),
    Case(SIZES, "text", TEXT, sets(TEXT, "hidden_size", value=10**9)),
    Case(SIZES, "text", "tokenizer", sets(TOKENIZER, "model_max_length", value=10**30)),
    Case(SIZES, "checkpoint", "model.ckpt", shared_number),
    Case(SIZES, "tiny", TINY_DECODER, sets(TINY_DECODER, "num_decoder_blocks", value=[10**6] * 3)),
    # formats and values
    Case(FORMAT, "reference", "reference", removed(INDEX)),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "format", value=1)),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "format", value=3)),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "format", value=2.0)),
    Case(FORMAT, "reference", INDEX, holds(INDEX, b"{")),
    Case(FORMAT, "reference", INDEX, holds(INDEX, DEEP)),
    Case(FORMAT, "reference", INDEX, holds(INDEX, b"\xff\xfe{}")),
    Case(FORMAT, "reference", INDEX, in_place(INDEX)),
    Case(FORMAT, "reference", INDEX, drops(INDEX, "timestep")),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "extra", value=1)),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "base", value="a\nlafr: all is well")),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "text", value="prompt")),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "timestep", value=True)),
    Case(FORMAT, "reference", INDEX, sets(INDEX, "lora", "alpha", value=NAN)),
    Case(FORMAT, "full", CODEC, removed(CODEC)),
    Case(FORMAT, "full", CODEC, holds(CODEC, DEEP)),
    Case(FORMAT, "full", CODEC, holds(CODEC, b"[]")),
    Case(FORMAT, "full", CODEC, sets(CODEC, "scaling_factor", value=NAN)),
    Case(FORMAT, "full", CODEC, sets(CODEC, "scaling_factor", value=0)),
    Case(FORMAT, "full", CODEC, sets(CODEC, "scaling_factor", value="1.7")),
    Case(FORMAT, "full", DENOISER, sets(DENOISER, "alpha_bar", value=0)),
    Case(FORMAT, "full", DENOISER, holds(DENOISER, b"null")),
    Case(FORMAT, "export", INDEX, sets(INDEX, "decoder", value="evil")),
    Case(FORMAT, "diffusers", "predicts", sets(SCHEDULER, "prediction_type", value="v_prediction")),
    Case(FORMAT, "diffusers", SCHEDULER, sets(SCHEDULER, "beta_start", value=-1.0)),
    Case(FORMAT, "diffusers", SCHEDULER, sets(SCHEDULER, "beta_schedule", value="evil")),
    Case(FORMAT, "diffusers", SCHEDULER, holds(SCHEDULER, DEEP)),
    Case(FORMAT, "diffusers", VAE, holds(VAE, b"")),
    Case(FORMAT, "checkpoint", "model.ckpt", endless),
    Case(FORMAT, "checkpoint", "model.ckpt", saved([1, 2])),
    Case(FORMAT, "checkpoint", "model.ckpt", lambda folder: (folder / "model.ckpt").write_bytes(b"\x80\x04.")),
]  # fmt: skip


def tried(case: Case, kinds: Path, place: Path) -> tuple[str, str]:
    """Return the outcome of loading one hostile folder, made in `place`, and what was said."""
    folder = Path(shutil.copytree(kinds / case.kind, place / case.kind))
    case.change(folder)
    try:
        LOADERS[case.kind](folder)
    except InputError as error:
        said = str(error)
        if ran(folder).exists():
            return "silent", f"ran code: {said}"
        # one line, that can be read, and that names the file
        fair = "\n" not in error.args[0] and len(said) < 700 and case.file in said
        return ("held" if fair else "lost"), said
    except Exception as error:
        return "lost", f"{type(error).__name__}: {error}"
    return "silent", "loaded"


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Try the first `count` cases; they are not random."""
    torch.manual_seed(seed)
    sound(folder / "sound")
    for number, case in enumerate(islice(CASES, count)):
        place = folder / str(number)
        place.mkdir()
        with patch.dict(os.environ, {BASES: "data"}):
            outcome, said = tried(case, folder / "sound", place)
        shutil.rmtree(place)
        yield Trial(case.what, f"{number}: {case.kind}, {case.file}", outcome, said)
