"""Where a base model comes from: an ordered list of folders, single files and hub repositories; sha256 pins."""

import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from lafr.errors import InputError, setting
from lafr.storage import sha256_of_file
from lafr.weights import mini_folder

HUB = "hub:"
REPOSITORY = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
WEIGHTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model", "text_encoder": "model"}
CONFIGS = {"vae": "config.json", "unet": "config.json", "scheduler": "scheduler_config.json"}
TEXT = {"text_encoder": "config.json", "tokenizer": "tokenizer_config.json"}
SINGLE = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Found:
    """A base model on this machine.

    Args:
        path: its folder in diffusers layout, or its single file.
        name: what finds it again: "mini", a path, or "hub:owner/name@COMMIT".
        variants: of `vae` and `unet` in a folder: None, or "fp16".
    """

    path: Path
    name: str
    variants: Mapping[str, str | None]


class NotThere(Exception):
    """Why a source cannot be used; the next one is tried."""


def find(
    sources: str | Path | Sequence[str | Path],
    remedy: str,
    offline: bool = False,
    variant: str | None = None,
    text: bool = False,
) -> Found:
    """Return the first source that is there; raises one InputError that says of each why it isn't, and the remedy.

    Args:
        sources: "mini"; a folder in diffusers layout; a `.safetensors` or `.ckpt` file; "hub:owner/name[@revision]" or,
            where no such path exists, "owner/name[@revision]". A hub gives safetensors only, of the parts in use.
        remedy: ends the error.
        offline: use what the hub's cache holds and ask no network; the environment's HF_HUB_OFFLINE=1 does so too.
        variant: "fp16" is preferred to the full weights; each stands in for the other.
        text: fetch text encoder and tokenizer too.
    """
    sources = [sources] if isinstance(sources, str | Path) else list(sources)
    reasons = []
    # all reasons are kept: the error says of every source why it was not used
    for source in map(str, sources):
        try:
            return _find(source, offline, variant, text)
        except NotThere as reason:
            reasons.append(f"{source!r} {reason}")
    raise InputError(f"base model weights are missing: {'; '.join(reasons) or 'no source is given'}; {remedy}")


def _find(source: str, offline: bool, variant: str | None, text: bool) -> Found:
    # a path is tried before the hub: a folder called owner/name shadows a repository
    path = mini_folder() / "base" if source == "mini" else Path(source)
    is_hub = source.startswith(HUB)
    if path.is_file() and not is_hub:
        if path.suffix not in SINGLE:
            raise NotThere(f"is neither a folder nor a {' or '.join(SINGLE)} file")
        return Found(path, source, {})
    if path.is_dir() and not is_hub:
        return Found(path, source, _variants(path, variant))
    repository = REPOSITORY.fullmatch(source.removeprefix(HUB))
    # "models/sd21" with an existing "models" is a mistyped path, not a repository
    if not is_hub and (repository is None or path.parent.is_dir()):
        raise NotThere("does not exist")
    if repository is None:
        raise NotThere("is not of the form hub:owner/name or hub:owner/name@revision")
    name = repository["name"]
    path, variants = _snapshot(name, repository["revision"], offline, variant, text)
    # a snapshot's folder is named by its commit: a saved model then pins what it was trained on
    return Found(path, f"{HUB}{name}@{path.name}", variants)


def _snapshot(name: str, revision: str | None, offline: bool, variant: str | None, text: bool) -> tuple[Path, dict]:
    """Fetch the parts in use, of one precision, into the hub's own cache."""
    # safety checker, feature extractor and EMA weights of a repository are left out
    parts = CONFIGS | (TEXT if text else {})
    configs = [f"{part}/{file}" for part, file in parts.items()] + (["tokenizer/*"] if text else [])
    reason: NotThere | None = None
    # the preferred one first, each once
    for precision in dict.fromkeys((variant, None, "fp16")):
        wanted = [
            f"{part}/{file}" for part, stem in WEIGHTS.items() if part in parts for file in _files(stem, precision)
        ]
        try:
            path = Path(
                snapshot_download(
                    name,
                    revision=revision,
                    allow_patterns=configs + wanted,
                    local_files_only=offline or not (constants.HF_HUB_OFFLINE or hub_answers()),
                    etag_timeout=10,  # seconds
                )
            )
            return path, _variants(path, precision)
        except NotThere as incomplete:
            # the first reason: it is that of the preferred precision
            reason = reason or incomplete
        except LocalEntryNotFoundError:
            why = "offline is asked for" if offline or constants.HF_HUB_OFFLINE else "the hub can't be reached"
            reason = reason or NotThere(f"is not in the hub's cache and {why}")
        except Exception as error:  # whatever the network does, the next source may do
            reason = reason or NotThere(f"can't be fetched ({type(error).__name__})")
    raise reason or NotThere("holds no weights")


def hub_answers(seconds: float = 3.0) -> bool:
    """Return whether the hub accepts a connection; taken for granted behind a proxy.

    Without a network the hub's own client tries again for minutes.
    """
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    hub = urlsplit(constants.ENDPOINT)
    return _answers(hub.hostname or "", hub.port or (80 if hub.scheme == "http" else 443), seconds)


@cache
def _answers(host: str, port: int, seconds: float) -> bool:
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False


def _files(stem: str, variant: str | None) -> list[str]:
    """Return how the weights of a part are called: in one file, or in shards with their index."""
    if variant is None:
        return [f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors", f"{stem}.safetensors.index.json"]
    # diffusers and transformers put the precision at different places of a shard name
    one, index = f"{stem}.{variant}.safetensors", f"{stem}.safetensors.index.{variant}.json"
    return [one, f"{stem}.{variant}-?????-of-?????.safetensors", f"{stem}-?????-of-?????.{variant}.safetensors", index]


def weights(folder: Path, part: str, variant: str | None) -> list[Path]:
    """Return the safetensors of a part in a folder, sorted; none when they are not there."""
    return sorted(
        path
        for pattern in _files(WEIGHTS[part], variant)
        if pattern.endswith(".safetensors")
        for path in (folder / part).glob(pattern)
    )


def _variants(folder: Path, preferred: str | None) -> dict[str, str | None]:
    """Return which precision of `vae` and `unet` the folder holds, the preferred one if it can be."""
    found, missing = {}, [part for part, file in CONFIGS.items() if not (folder / part / file).is_file()]
    for part in ("vae", "unet"):
        there = [v for v in dict.fromkeys((preferred, None, "fp16")) if weights(folder, part, v)]
        if there:
            found[part] = there[0]
        elif part not in missing:
            missing.append(f"{part}/*.safetensors")
    if missing:
        raise NotThere(f"has no {', '.join(missing)}")
    return found


def require_pinned(root: Path, files: Sequence[Path], pins: Mapping[str, str] | None) -> None:
    """Raise InputError unless the sha256 of each file is the pinned one, before any of them is opened.

    `pins` maps paths relative to `root` to hex digests. Where there are pins, every weights file needs one;
    configurations are compared where they have one.
    """
    if not pins:
        return
    for path in files:
        name = path.relative_to(root).as_posix()
        if name not in pins and path.suffix not in SINGLE:
            continue
        found = sha256_of_file(path)
        if name not in pins:
            raise InputError(f"{setting('sha256')} has no line for {str(path)!r}; if you trust it, add {name}: {found}")
        if found != (pinned := pins[name].lower()):
            raise InputError(
                f"{str(path)!r} is not the pinned file: its sha256 is {found[:12]}..., not {pinned[:12]}...; "
                f"fetch it again, or correct {setting('sha256')} if you trust it"
            )
