"""Limits of what a visitor may ask for, and the errors beyond them."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from lafr.errors import InputError
from lafr.images import read_pil


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Args:
        megabytes: of an upload.
        megapixels: of the photo in it, read from its header before it is decoded.
        seconds: of a request's work, without its wait; checked before each batch of faces.
        waiting: requests in the queue; one is worked on at a time.
        total_megabytes: of all visitors' files at one time.
        keep_seconds: after which a visitor's files are removed from the disk.
    """

    megabytes: int = 20
    megapixels: float = 25
    seconds: float = 60
    waiting: int = 16
    total_megabytes: int = 2000
    keep_seconds: float = 300

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InputError(f"Limits.{name}", value, "a number above 0")


def read_upload(path: str | Path, limits: Limits) -> Image.Image:
    """Return the photo in an upload, upright and RGB; raises InputError that names only the upload."""
    name = Path(path).name
    try:
        data = Path(path).read_bytes()
    except OSError:
        minutes = max(1, round(limits.keep_seconds / 60))
        raise InputError(
            f"{name!r} is no longer here, as uploads are kept for {minutes} min; choose it again"
        ) from None
    if len(data) > limits.megabytes * 1e6:
        raise InputError(f"{name!r} has {len(data) / 1e6:.0f} MB; the limit is {limits.megabytes} MB: shrink it first")
    if (megapixels := _megapixels(data)) > limits.megapixels:
        raise InputError(
            f"{name!r} has {megapixels:.0f} megapixels; the limit is {limits.megapixels:g}: shrink it first"
        )
    return read_pil(name, data)


def _megapixels(data: bytes) -> float:
    """Return the megapixels stated by an image's header; 0 where it cannot be read: `read_pil` reports the reason."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(data)) as header:
                return header.width * header.height / 1e6
    except Image.DecompressionBombError:
        return 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6  # at least
    except (OSError, SyntaxError, ValueError):
        return 0.0


@contextmanager
def time_limit(module: nn.Module, seconds: float) -> Iterator[None]:
    """Stop the work inside with an InputError when `module` is called later than `seconds` after the start."""
    end = time.monotonic() + seconds

    def check(*_: Any) -> None:
        if time.monotonic() > end:
            raise InputError(f"this took longer than {seconds:g} s; send a smaller photo, or one with fewer faces")

    handle = module.register_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()
