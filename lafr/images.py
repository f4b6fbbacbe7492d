"""The image convention: float RGB `[3, H, W]` in [-1, 1]. This file alone reads, writes and converts."""

import errno
import os
import re
import stat
import struct
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from lafr.errors import InputError, setting
from lafr.storage import atomic_write

ImageLike: TypeAlias = Image.Image | np.ndarray | Tensor | str | os.PathLike  # one image; see `as_images`

SAVING: dict[str, dict[str, Any]] = {  # options of Pillow's writers
    ".png": {"compress_level": 4},  # 2.3 times as fast as zlib's default of 6, and 0.2 % larger (a photo of 768 px)
    ".jpg": {"quality": 95, "subsampling": 0},
    ".jpeg": {"quality": 95, "subsampling": 0},
    ".webp": {"quality": 95},
    ".tif": {"compression": "tiff_lzw"},
}
EXTENSIONS = frozenset([".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif", ".jp2"])
# Pillow's names of the formats that are read, whatever a file's extension says. Others stay closed: EPS, for one,
# would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "PPM", "GIF", "JPEG2000", "AVIF", "HEIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
MAX_MEGAPIXELS = 64.0  # of an image that is decoded; its header says how many it has
COLOUR_SPACES = {"L": b"GRAY", "LA": b"GRAY", "I;16": b"GRAY", "RGB": b"RGB ", "RGBA": b"RGB ", "CMYK": b"CMYK"}
PNG_COLOUR = (b"gAMA", b"cHRM", b"sRGB", b"cICP")  # chunks that say what a PNG's numbers mean
SCREEN_GAMMA = 0.45455  # gAMA of an ordinary image, 1 / 2.2


def list_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Return the images under `folder`, sorted by path, without hidden files, folders, pipes and devices.

    A folder that cannot be listed is passed over; a link that leads nowhere is returned, and reported when it is read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"folder {str(folder)!r} does not exist; give the path of a folder of images")
    names = []
    for place, folders, files in os.walk(folder):  # unlike rglob it survives a folder that cannot be listed
        names += [Path(place, name) for name in files]
        if not recursive:
            folders.clear()
    found = sorted(p for p in names if p.suffix.lower() in EXTENSIONS and not p.name.startswith(".") and is_file(p))
    if not found:
        raise InputError(f"folder {str(folder)!r} holds no image ({' '.join(sorted(EXTENSIONS))})")
    return found


def unicode_twins(names: Iterable[str], others: Iterable[str]) -> str:
    """Return a clause about two names that look alike and differ in their Unicode form; empty without any."""
    forms = {unicodedata.normalize("NFC", name): name for name in others}
    for name in names:
        other = forms.get(unicodedata.normalize("NFC", name), name)
        if other != name:
            composed = "composed (NFC)" if name == unicodedata.normalize("NFC", name) else "decomposed (NFD)"
            return f" ({name!a} and {other!a} look alike, the first with {composed} letters: rename one)"
    return ""


def is_file(path: str | os.PathLike) -> bool:
    """Return whether a path may be opened: False for a folder, a pipe or a device, which could block for ever."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # opening it will say what is wrong


@cache
def formats() -> tuple[str, ...]:
    """Return which of `FORMATS` this Pillow reads; HEIF where the package pillow-heif is installed."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unread_kind(path: str | os.PathLike, data: bytes | None = None) -> tuple[str, str] | None:
    """Return what an image of a kind that needs a further package is, and how to get that; None for another."""
    head = data[:12] if data is not None else b""
    if data is None:
        with open(path, "rb") as file:
            head = file.read(12)
    if head[4:8] != b"ftyp":  # ISO base media: the brand follows
        return None
    if head[8:12] == b"avif" and "AVIF" not in formats():
        return "AVIF", "pip install 'pillow>=11.3', or convert it to PNG or JPEG"
    if head[8:12] in HEIC_BRANDS and "HEIF" not in formats():
        return "HEIC", "pip install 'lafr[heic]', or convert it to PNG or JPEG"
    return None


@contextmanager
def opened(
    path: str | os.PathLike, data: bytes | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> Iterator[Image.Image]:
    """Open the image at `path`, or in `data`, not decoded yet; whatever its decoder raises inside is an InputError.

    Only regular files are opened, and only images whose header states at most `max_megapixels`.
    """
    with _one_line(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of damaged metadata, and above 89 megapixels
        if data is None and not is_file(path):
            kind = "a folder" if os.path.isdir(path) else "not a regular file"
            raise InputError(f"{str(path)!r} cannot be opened: it is {kind}")
        if missing := unread_kind(path, data):
            raise InputError(f"{str(path)!r} is {missing[0]}, which is not read here", remedy=missing[1])
        with Image.open(path if data is None else BytesIO(data), formats=formats()) as image:
            megapixels = image.width * image.height / 1e6
            if megapixels > max_megapixels:
                wanted = setting("max_megapixels", max(1, round(megapixels + 0.5)))
                raise InputError(
                    f"{str(path)!r} has too many pixels: {megapixels:.0f} megapixels, {max_megapixels:g} are the most; "
                    f"shrink it, or give {wanted}"
                )
            yield image


def read_pil(path: str | os.PathLike, data: bytes | None = None, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Return the image at `path`, or in `data` (errors name `path` all the same), upright, in 8-bit RGB.

    EXIF orientation is applied, transparency is blended over white, 16-bit and gray values keep their
    meaning (65535 and 255 are both white), CMYK and palettes are converted.
    """
    with opened(path, data, max_megapixels) as image:
        image.load()
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception:  # broken EXIF; the pixels are whole
            turned = image
        return to_rgb(turned)


def read_photo(path: str | os.PathLike, max_megapixels: float = MAX_MEGAPIXELS) -> tuple[Image.Image, tuple[str, ...]]:
    """Return the photo at `path`, upright, in its own mode and with its metadata in `info`; and what was lost.

    The first frame of an animation is read; 16 bits a colour become 8. `info["png_colour"]` holds a PNG's chunks of
    `PNG_COLOUR`.
    """
    lost = []
    with opened(path, max_megapixels=max_megapixels) as image:
        if image.mode.startswith("RGB") and any(_has_16_bits(tile) for tile in getattr(image, "tile", ())):
            lost.append("its 16 bits a colour were read as 8")
        if (depth := image.info.get("bit_depth", 8)) > 8:  # of HEIC
            lost.append(f"its {depth} bits a colour were read as 8")
        frames = getattr(image, "n_frames", 1)
        if frames > 1 and image.format != "MPO":  # MPO is a camera's format: its second frame is a preview
            lost.append(f"only the first of its {frames} frames was read")
        is_png = image.format == "PNG"
        image.load()
        photo = image.copy()
        photo.info = dict(image.info)
        try:
            photo = ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow raises many exceptions for broken EXIF
            lost.append(f"its EXIF cannot be read ({type(error).__name__}); it may be rotated")
            photo.info.pop("exif", None)
        if is_png:
            photo.info["png_colour"] = _png_colour(path)
            gamma = png_gamma(photo.info)
            if gamma is not None:
                lost.append(f"its gamma is {gamma:.2f}, not {SCREEN_GAMMA:.2f}: faces are restored as if it were")
    return photo, tuple(lost)


def _has_16_bits(tile: Any) -> bool:
    """Return whether a tile's raw mode has 16 bits a channel, as "RGB;16B" has; "BGR;16" has 16 bits a pixel."""
    arguments = tile[3]
    raw_mode = arguments[0] if isinstance(arguments, tuple | list) and arguments else arguments
    return re.search(r";16[BLN]", str(raw_mode)) is not None


def _png_colour(path: str | os.PathLike) -> dict[bytes, bytes]:
    """Return the chunks of `PNG_COLOUR` of a PNG; Pillow drops them (PNG, third edition, 5.6: before PLTE and IDAT)."""
    found: dict[bytes, bytes] = {}
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"IDAT":
                break
            if kind in PNG_COLOUR and length <= 32:
                found[kind] = file.read(length)
                file.seek(4, os.SEEK_CUR)  # checksum
            else:
                file.seek(length + 4, os.SEEK_CUR)
    return found


def png_gamma(info: Mapping) -> float | None:
    """Return what gAMA states, where it counts (neither iCCP, sRGB nor cICP is there) and is not the usual 1 / 2.2."""
    chunks = info.get("png_colour", {})
    if len(chunks.get(b"gAMA", b"")) != 4 or info.get("icc_profile") or b"sRGB" in chunks or b"cICP" in chunks:
        return None
    gamma = struct.unpack(">I", chunks[b"gAMA"])[0] / 1e5
    return gamma if gamma > 0 and abs(gamma / SCREEN_GAMMA - 1) > 0.05 else None


def upright(photo: Image.Image) -> Image.Image:
    """Return a copy with its EXIF orientation applied and removed; damaged EXIF raises no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(photo)


@contextmanager
def _one_line(path: str | os.PathLike) -> Iterator[None]:
    """Raise what a reader finds wrong with an image as an InputError of one line."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"image {str(path)!r} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{str(path)!r} is not an image that can be read; convert it to PNG or JPEG") from None
    except Image.DecompressionBombError:
        raise InputError(f"{str(path)!r} has too many pixels; crop or shrink it") from None
    except InputError:
        raise
    except Exception as error:  # decoders raise anything, RuntimeError and NotImplementedError among it
        if isinstance(error, PermissionError | IsADirectoryError) or getattr(error, "errno", None) in (
            errno.ELOOP,
            errno.ENAMETOOLONG,
        ):
            raise InputError(f"{str(path)!r} cannot be opened: {getattr(error, 'strerror', error)}") from None
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
    """Return `[3, H, W]` in [-1, 1] as an 8-bit PIL image."""
    return Image.fromarray(to_uint8(image).permute(1, 2, 0).cpu().numpy())


def from_uint8(image: Tensor) -> Tensor:
    """Map 0..255 to [-1, 1]."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """Map [-1, 1] to 0..255: clamped, rounded to the nearest level."""
    return ((image.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def as_saved(image: Tensor) -> Tensor:
    """Return the image that a PNG would hold: clamped and rounded to 8 bits, still in [-1, 1]; NaN stays NaN."""
    # else NaN would become a level, and a metric would measure it
    return torch.where(image.isnan(), image.float(), from_uint8(to_uint8(image)))


def as_images(given: ImageLike | Sequence[ImageLike], low: float = -1.0) -> list[Image.Image | Tensor]:
    """Return images given in any form as a list: 8-bit ones as PIL images, float ones as `[3, H, W]` in [-1, 1].

    Args:
        given: a PIL image; a path; an array, uint8 `[H, W]`, `[H, W, 3 or 4]` or float `[H, W, 3]`; a float tensor
            `[3, H, W]`; a batch `[B, ...]` of either; or a list or tuple of single images.
        low: what is black in floats: -1 for [-1, 1], 0 for [0, 1] as in diffusers; 1 is white.

    Raises InputError, with the image's number in a list, for another type, shape, dtype or range.
    """
    if not isinstance(given, list | tuple):
        return _images(cast(ImageLike, given), low, "the image", may_be_batch=True)
    if not given:
        raise InputError("the list of images is empty; give one or more")
    images = []
    for number, one in enumerate(given):
        images += _images(one, low, f"image {number}", may_be_batch=False)
    return images


def _images(given: ImageLike, low: float, name: str, may_be_batch: bool) -> list[Image.Image | Tensor]:
    if isinstance(given, Image.Image):
        return [upright(given)]
    if isinstance(given, str | os.PathLike):
        return [read_pil(given)]
    batched = may_be_batch and getattr(given, "ndim", 3) == 4
    if isinstance(given, np.ndarray) and given.dtype == np.uint8:
        pictures = list(given) if batched else [given]
        if not pictures or any(one.ndim != 2 and not (one.ndim == 3 and one.shape[2] in (3, 4)) for one in pictures):
            raise InputError(f"{name} is a uint8 array of shape {list(given.shape)}; give [H, W, 3] or [B, H, W, 3]")
        return [Image.fromarray(one) for one in pictures]
    if isinstance(given, np.ndarray) and np.issubdtype(given.dtype, np.floating):
        given = torch.from_numpy(np.ascontiguousarray(given, np.float32))
        channels = given.movedim(-1, -3) if given.ndim >= 3 else given
        kind = "array [H, W, 3] or [B, H, W, 3]"
    elif isinstance(given, Tensor):
        channels, kind = given, "tensor [3, H, W] or [B, 3, H, W]"
    else:
        what = f"array of {given.dtype}" if isinstance(given, np.ndarray) else f"{given!r:.80}"
        raise InputError(f"{name} is {what}; give a PIL image, a path, a uint8 array [H, W, 3] or a float tensor")
    batch = channels if batched else channels[None]
    require_batch(batch, low, name, f"a float {kind}")
    return list(batch * 2 - 1 if low == 0 else batch)


def require_batch(
    batch: Tensor, low: float = -1.0, name: str = "the batch", wanted: str = "a float tensor [B, 3, H, W]"
) -> None:
    """Raise InputError unless `batch` is floats `[B, 3, H, W]` from `low` to 1, a thousandth of rounding allowed."""
    if batch.ndim != 4 or batch.shape[1] != 3 or not len(batch) or not batch.is_floating_point():
        raise InputError(f"{name} has shape {list(batch.shape)} and {batch.dtype}; give {wanted} in [{low:g}, 1]")
    if type(batch) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return  # fake tensors and traces have no values
    if not bool(((batch >= low - 1e-3) & (batch <= 1 + 1e-3)).all()):  # also false for NaN
        least, most = batch.min().item(), batch.max().item()
        raise InputError(f"{name} holds values from {least:.4g} to {most:.4g}; scale or clamp them to [{low:g}, 1]")


def as_given(given: ImageLike | Sequence[ImageLike], images: Sequence[Tensor]) -> Any:
    """Return `images`, each `[3, H, W]` in [-1, 1], in the form of what they were made from by `as_images(given)`.

    PIL images and paths become PIL images, arrays arrays of the same kind, tensors tensors (not clamped), a list a
    list, a batch a batch.
    """
    if isinstance(given, list | tuple):
        return [as_given(one, [image]) for one, image in zip(given, images, strict=True)]
    if isinstance(given, Tensor):
        return torch.stack(list(images)) if given.ndim == 4 else images[0]
    if isinstance(given, np.ndarray):
        stack = torch.stack([to_uint8(image) if given.dtype == np.uint8 else image.float() for image in images])
        arrays = stack.movedim(1, 3).cpu().numpy()  # [B, H, W, 3]
        return arrays if given.ndim == 4 else arrays[0]
    return to_pil(images[0])


def aligned_input(image: Image.Image | Tensor, resolution: int, name: str) -> Tensor:
    """Return an image of `as_images` as the model reads it: `[3, H, W]` in [-1, 1].

    A PIL image is resized to `resolution`, and InputError raised when it is not square; a tensor is returned as is.
    """
    if isinstance(image, Tensor):
        return image
    require_square(image, name)
    return from_pil(resize_pil(to_rgb(image), resolution))


def resize_pil(image: Image.Image, size: int) -> Image.Image:
    """Resize to `size` x `size` with Pillow's antialiased Lanczos, the project's one image filter."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.LANCZOS)


def read_image(path: str | Path, size: int | None = None) -> Tensor:
    """Read an aligned face as `[3, size, size]` in [-1, 1]; without `size` in its own size.

    >>> from lafr import read_image, write_image
    >>> from lafr.weights import locate
    >>> read_image(locate("astronaut"), 128).shape
    torch.Size([3, 128, 128])

    Raises InputError for an image that is not square when `size` is given: it is not an aligned crop.
    """
    image = read_pil(path)
    if size is not None:
        require_square(image, str(path))
        image = resize_pil(image, size)
    return from_pil(image)


def require_square(image: Image.Image, name: str) -> None:
    """Raise InputError unless the image is square, one pixel of rounding allowed."""
    width, height = image.size
    if abs(width - height) > 1:
        raise InputError(
            f"{name!r} is {width} x {height}, not square, so it is not an aligned face; "
            "crop it to the FFHQ alignment first"
        )


def write_image(image: Tensor | Image.Image, path: str | Path) -> None:
    """Write an image, `[3, H, W]` in [-1, 1] or PIL, atomically; the path's extension chooses the format.

    JPEG and WebP are written at quality 95, as `write_photo` does.

    >>> import tempfile, torch
    >>> from lafr import read_image, write_image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_image(torch.ones(3, 8, 8), f"{folder}/white.png")
    ...     read_image(f"{folder}/white.png").mean()
    tensor(1.)
    """
    picture = to_pil(image) if isinstance(image, Tensor) else image
    atomic_write(Path(path), partial(picture.save, **SAVING.get(Path(path).suffix.lower(), {})))


def write_photo(photo: Image.Image, path: str | Path) -> tuple[Path, tuple[str, ...]]:
    """Write a photo with its colour facts, resolution, EXIF and XMP, atomically.

    Returns `photo_path(photo, path)`, and what could not be kept. PNG and TIFF are lossless. JPEG and WebP are written
    at quality 95 and hold 8 bits a colour; JPEG has no transparency (blended over white), WebP no gray (written as
    RGB).
    """
    path = photo_path(photo, Path(path))
    extension = path.suffix.lower()
    stored = _in_mode_of(extension, photo)
    if extension != ".png" and (gamma := png_gamma(photo.info)) is not None:
        stored = _as_on_screen(stored, gamma)
    options, lost = _writable(stored, extension, *_metadata(photo, stored, extension))
    bare: dict[str, Any] = {"icc_profile": None, "transparency": None}  # else Pillow takes them from `info`
    atomic_write(path, lambda temporary: stored.save(temporary, **bare | options))
    return path, tuple(lost)


def _metadata(photo: Image.Image, stored: Image.Image, extension: str) -> tuple[dict[str, Any], list[str]]:
    """Return what is to be written with the pixels, as options of Pillow's writers, and what fits no such option."""
    lost = []
    kept = {key: photo.info[key] for key in ("icc_profile", "dpi", "exif") if photo.info.get(key)}
    space = bytes(kept.get("icc_profile", b""))[16:20]  # of an ICC profile's header
    if "icc_profile" in kept and space != COLOUR_SPACES.get(stored.mode):
        del kept["icc_profile"]  # it would say of RGB pixels what it says of Lab or gray ones
        name = space.decode("latin-1").strip() or "nothing"
        lost.append(f"its colour profile, of {name}, does not fit {stored.mode} pixels and is left out")
    if "dpi" in kept and extension == ".webp":
        lost.append("its resolution has no place in webp and is left out")
    lost += [f"its {name} is left out" for key, name in DROPPED.items() if photo.info.get(key)]
    xmp = photo.info.get("xmp")
    xmp = xmp.encode("utf-8") if isinstance(xmp, str) else xmp
    chunks = photo.info.get("png_colour", {})
    if extension == ".png":
        written = PngImagePlugin.PngInfo()
        for kind, body in chunks.items():
            written.add(kind, body)
        if xmp:
            written.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
        if written.chunks:
            kept["pnginfo"] = written
    else:
        if b"cICP" in chunks or (b"cHRM" in chunks and b"sRGB" not in chunks and "icc_profile" not in kept):
            lost.append(f"its colours' description (cHRM, cICP) has no place in {extension[1:]} and is left out")
        if xmp and extension in (".jpg", ".jpeg", ".webp"):
            kept["xmp"] = xmp
        elif xmp:
            kept["tiffinfo"] = {700: xmp}
    return kept, lost


DROPPED = {"photoshop": "IPTC record", "comment": "comment"}  # key of Pillow's `info` -> what is not written
NAMES = {
    "icc_profile": "colour profile",
    "dpi": "resolution",
    "exif": "EXIF",
    "xmp": "XMP",
    "tiffinfo": "XMP",
    "pnginfo": "colours' description or XMP",
}


def _writable(
    stored: Image.Image, extension: str, kept: Mapping[str, Any], lost: list[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the writer's options with as much of `kept` as it takes, tried on one pixel; and `lost` with the rest."""
    options = dict(SAVING.get(extension, {}))
    pixel, name = Image.new(stored.mode, (1, 1)), Image.registered_extensions().get(extension)

    def taken(trial: dict[str, Any]) -> bool:
        try:
            pixel.save(BytesIO(), name, **trial)
        except Exception:  # the writers raise many exceptions for damaged metadata
            return False
        return True

    if extension == ".tif" and "exif" in kept:
        options.pop("compression")  # libtiff, which compresses, writes no EXIF with sub-directories
    for key, value in kept.items():
        if taken(options | {key: value}):
            options[key] = value
        else:
            lost = [*lost, f"its {NAMES[key]} cannot be written and is left out"]
    return options, lost


def _as_on_screen(photo: Image.Image, gamma: float) -> Image.Image:
    """Return a photo whose values were intensity ** `gamma` with those of an ordinary image."""
    table = [round(255 * (value / 255) ** (SCREEN_GAMMA / gamma)) for value in range(256)]
    if photo.mode not in ("L", "LA", "RGB", "RGBA"):
        return photo
    straight = list(range(256))
    return photo.point([v for band in photo.getbands() for v in (straight if band == "A" else table)])


def photo_path(photo: Image.Image, path: Path) -> Path:
    """Return the path that a photo is written to: CMYK, which PNG and WebP cannot hold, becomes TIFF."""
    is_cmyk = photo.mode == "CMYK" and path.suffix.lower() in (".png", ".webp")
    return path.with_suffix(".tif") if is_cmyk else path


def _in_mode_of(extension: str, photo: Image.Image) -> Image.Image:
    """Return the photo in the nearest mode that the format of this extension holds."""
    if extension in (".jpg", ".jpeg") and photo.mode not in ("L", "RGB", "CMYK"):
        rgb = to_rgb(photo)
        return rgb.convert("L") if photo.mode in ("LA", "I;16") else rgb
    if extension == ".webp" and photo.mode not in ("RGB", "RGBA"):
        return photo.convert("RGBA") if photo.mode == "LA" else to_rgb(photo)
    return photo


def write_stored_png(image: Tensor, path: str | Path) -> None:
    """Write `[3, H, W]` in [-1, 1] as an uncompressed PNG whose bytes depend on the pixels alone, atomically.

    Pillow with `compress_level=0` does not serve: it filters the rows, and the length of its stored blocks depends on
    the zlib that it was built with (33,814 bytes with zlib-ng 2.3, other lengths with zlib 1.2).
    """
    pixels = to_uint8(image).permute(1, 2, 0).cpu().numpy()  # [H, W, 3]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # filter 0: none
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", _stored(rows)), _chunk(b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    atomic_write(Path(path), lambda temporary: temporary.write_bytes(data))


def _stored(data: bytes) -> bytes:
    """Return a zlib stream (RFC 1950) of stored blocks (RFC 1951, 3.2.4), each as long as a block can be."""
    blocks = []
    for start in range(0, len(data), 65535):
        block = data[start : start + 65535]
        is_last = start + 65535 >= len(data)
        blocks.append(struct.pack("<BHH", is_last, len(block), len(block) ^ 0xFFFF) + block)
    return b"\x78\x01" + b"".join(blocks) + struct.pack(">I", zlib.adler32(data))


def _chunk(kind: bytes, body: bytes) -> bytes:
    """Return a PNG chunk: length, kind, body, checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
