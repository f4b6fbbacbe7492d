"""The image convention: float RGB `[3, H, W]` in [-1, 1]. This file alone reads, writes and converts."""

import errno
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lafr.errors import InputError
from lafr.storage import atomic_write

# What Pillow's readers raise for a file that is broken.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, MemoryError, struct.error, zlib.error)
EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2"])


def list_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Return the images under `folder`, sorted by path; hidden files are passed over."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {str(folder)!r} does not exist; give the path of a folder of images")
    walk = folder.rglob("*") if recursive else folder.iterdir()
    found = sorted(p for p in walk if p.suffix.lower() in EXTENSIONS and not p.name.startswith("."))
    if not found:
        raise InputError(f"folder {str(folder)!r} holds no image ({' '.join(sorted(EXTENSIONS))})")
    return found


def read_pil(path: str | Path, data: bytes | None = None) -> Image.Image:
    """Return the picture at `path`, or in `data` (messages still say `path`), as an upright 8-bit RGB image.

    EXIF orientation is applied, transparency is blended over white, 16-bit and gray values keep their
    meaning (65535 and 255 are both white), CMYK and palettes are converted.
    """
    with _said_of(path), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path if data is None else BytesIO(data)) as image:
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))


def read_photo(path: str | Path) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the photo at `path`, upright, in its own mode and with its metadata in `info`; and what was lost.

    Up to Pillow's limit of 178 megapixels. Of an animation the first picture is read; 16 bits a colour become 8.
    """
    lost = []
    with _said_of(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged metadata, and 89 megapixels, are warned of
        with Image.open(path) as image:
            if image.mode.startswith("RGB") and any("16" in str(tile[3]) for tile in image.tile):
                lost.append("its 16 bits a colour were read as 8")
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":  # a camera's: the second picture is a preview
                lost.append(f"only the first of its {frames} pictures was read")
            image.load()
            photo = image.copy()
            photo.info = dict(image.info)
            try:
                photo = ImageOps.exif_transpose(image)
            except Exception as error:  # Pillow has no one exception for the ways in which EXIF is broken
                lost.append(f"its EXIF cannot be read ({type(error).__name__}); it may lie on its side")
                photo.info.pop("exif", None)
    return photo, tuple(lost)


def upright(photo: Image.Image) -> Image.Image:
    """Return a copy with its EXIF orientation applied and removed; damaged EXIF is not warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(photo)


@contextmanager
def _said_of(path: str | Path) -> Iterator[None]:
    """Say in one line what is wrong with a picture."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"image {str(path)!r} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{str(path)!r} is not an image that can be read; convert it to PNG or JPEG") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise InputError(f"{str(path)!r} has too many pixels; crop or shrink it") from None
    except BROKEN as error:
        if isinstance(error, PermissionError | IsADirectoryError) or getattr(error, "errno", None) == errno.ELOOP:
            raise InputError(f"{str(path)!r} cannot be opened: {error.strerror}") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{str(path)!r} is damaged or truncated ({reason}); get a whole copy") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to 8-bit RGB; transparency is blended over white."""
    if image.mode.startswith(("I", "F")):  # 16-bit and 32-bit gray: PIL's own conversion clips at 255
        values = np.asarray(image, np.float64)
        top = 65535.0 if image.mode.startswith("I") else max(1.0, float(values.max(initial=1.0)))
        return Image.fromarray(np.round(values.clip(0, top) / top * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def from_pil(image: Image.Image) -> Tensor:
    """Return `[3, H, W]` in [-1, 1] from a PIL image of any mode."""
    return from_uint8(torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1))


def to_pil(image: Tensor) -> Image.Image:
    """Return the 8-bit picture of `[3, H, W]` in [-1, 1]."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def from_uint8(image: Tensor) -> Tensor:
    """Map 0..255 to [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255: clamped, rounded to the nearest level."""
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def as_saved(image: Tensor) -> Tensor:
    """Return the image that a PNG would hold: clamped and rounded to 8 bits, still in [-1, 1]."""
    return from_uint8(to_uint8(image))


def resize_pil(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` x `size` with Pillow's antialiased Lanczos, the project's one image filter."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def read_image(path: str | Path, size: int | None = None) -> Tensor:
    """Read an aligned face as `[3, size, size]` in [-1, 1]; without `size` it keeps its own.

    Raises InputError for a picture that is not square when `size` is given: it is not an aligned crop.
    """
    image = read_pil(path)
    if size is not None:
        require_square(image, str(path))
        image = resize_pil(image, size)
    return from_pil(image)


def require_square(image: Image.Image, name: str) -> None:
    """Raise InputError unless the picture is square (one pixel of rounding is let through)."""
    width, height = image.size
    if abs(width - height) > 1:
        raise InputError(
            f"{name!r} is {width} x {height}, not square, so it is not an aligned face; "
            "crop it to the FFHQ alignment first"
        )


def write_image(image: Tensor | Image.Image, path: str | Path) -> None:
    """Write a picture aside and rename it, so that a stop or a full disk leaves no half file."""
    picture = to_pil(image) if isinstance(image, Tensor) else image
    atomic_write(Path(path), picture.save)


def write_photo(photo: Image.Image, path: str | Path) -> Path:
    """Write a photo without loss, with its profile, resolution and EXIF; returns where: CMYK, unknown to PNG, as TIFF.

    As `write_image`, all or nothing.
    """
    kept = {key: photo.info[key] for key in ("icc_profile", "dpi", "exif") if photo.info.get(key)}
    if photo.mode == "CMYK":
        path = Path(path).with_suffix(".tif")
        kept["compression"] = "tiff_lzw"
    atomic_write(Path(path), lambda aside: photo.save(aside, **kept))
    return Path(path)


def write_stored_png(image: Tensor, path: str | Path) -> None:
    """Write `[3, H, W]` in [-1, 1] as a PNG that isn't compressed: its bytes follow from the pixels alone.

    Compressors differ between versions and builds (zlib, zlib-ng). As `write_image`, all or nothing.
    """
    pixels = to_uint8(image).permute(1, 2, 0).cpu().numpy()
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0: none
    blocks = [rows[start : start + 65535] for start in range(0, len(rows), 65535)]
    deflate = b"\x78\x01" + b"".join(  # RFC 1950; RFC 1951, 3.2.4
        struct.pack("<BHH", block is blocks[-1], len(block), len(block) ^ 0xFFFF) + block for block in blocks
    )
    deflate += struct.pack(">I", zlib.adler32(rows))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", deflate), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    atomic_write(Path(path), lambda aside: aside.write_bytes(data))
