"""Blend restored RGB faces into a photo of any mode; all other pixels are unchanged, bit for bit."""

from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from lafr.errors import InputError
from lafr.images import to_rgb

KEPT = ("L", "LA", "RGB", "RGBA", "CMYK", "I;16")
# Modes that cannot hold a restored face, and the nearest mode that can.
INSTEAD = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "LAB": "RGB",
    "HSV": "RGB",
    "I;16B": "I;16",
    "I;16L": "I;16",
    "I;16N": "I;16",
    "I": "I;16",
}
TOP_16 = 257  # 65535 / 255
LUMA = np.array([299, 587, 114], np.float32) / 1000  # ITU-R BT.601, as Pillow


class Canvas:
    """A photo rendered `scale` times as large, with its own mode and metadata.

    Args:
        photo: upright, of any mode; 32-bit float raises InputError.
        scale: a whole number.
        upscaler: enlarges RGB: maps (image, scale) to the larger image; Lanczos when None.

    `rgb [H, W, 3]` is the photo in its own size, over white where it is transparent; `size` is the rendered size.
    """

    def __init__(self, photo: Image.Image, scale: int = 1, upscaler: Callable | None = None):
        self.info = dict(photo.info)
        photo = storable(photo)
        self.rgb = np.asarray(to_rgb(photo))
        self.mode, self.size = photo.mode, (photo.width * scale, photo.height * scale)
        spread = self.rgb.max(2) != self.rgb.min(2)
        self.gray = self.mode in ("L", "LA", "I;16") or not spread.any()
        self.before = np.asarray(enlarged(photo, scale, upscaler))
        self.after = self.before.copy()

    def blend(self, box: tuple[int, int, int, int], face: np.ndarray, share: np.ndarray) -> None:
        """Blend `face [h, w, 3]`, RGB 0..255, into `box` of the rendered photo by `share [h, w]` in 0..1.

        Shares of overlapping faces add up: each moves the pixels from their original values.
        """
        window = np.s_[box[1] : box[3], box[0] : box[2]]
        before = self.before[window].astype(np.float32)
        if self.mode in ("LA", "RGBA"):  # transparent pixels were not seen by the model: they keep their colour
            share = share * (before[..., -1] / 255)
        if self.gray:
            face = np.repeat((face @ LUMA)[..., None], 3, 2)
        wanted = self._as_stored(face, before)
        moved = share.reshape(share.shape + (1,) * (before.ndim - 2)) * (wanted - before)
        top = 65535 if self.mode == "I;16" else 255
        self.after[window] = np.clip(np.round(self.after[window] + moved), 0, top).astype(self.after.dtype)

    def _as_stored(self, face: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return RGB in the photo's mode; alpha and black, the K of CMYK, are unchanged."""
        face = np.clip(face, 0, 255)
        if self.mode == "I;16":
            return face[..., 0] * TOP_16
        if self.mode == "L":
            return face[..., 0]
        if self.mode == "LA":
            return np.concatenate([face[..., :1], before[..., 1:]], 2)
        if self.mode == "RGBA":
            return np.concatenate([face, before[..., 3:]], 2)
        if self.mode == "CMYK":  # R = (255 - C)(255 - K) / 255, Pillow's
            light = np.maximum(255 - before[..., 3:], 1)
            return np.concatenate([255 - np.minimum(face * 255 / light, 255), before[..., 3:]], 2)
        return face

    def image(self) -> Image.Image:
        """Return the rendered photo with the faces, in its mode and with its metadata."""
        image = Image.fromarray(self.after, self.mode) if self.mode == "CMYK" else Image.fromarray(self.after)
        image.info = self.info
        return image


def in_kind_of(photo: Image.Image, face: Image.Image) -> Image.Image:
    """Return the RGB restoration of an aligned face as its input was: gray or not, transparent or not, its metadata."""
    rgb = np.asarray(to_rgb(photo))
    if photo.mode in ("I", "I;16"):
        face = Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 257)
    elif photo.mode in ("1", "L", "LA", "La", "F"):
        face = face.convert("L")
    elif not (rgb.max(2) != rgb.min(2)).any():  # a gray face in three channels
        face = face.convert("L").convert("RGB")
    if photo.has_transparency_data:
        face.putalpha(photo.convert("RGBA").getchannel("A").resize(face.size, Image.Resampling.LANCZOS))
    face.info = {key: value for key, value in photo.info.items() if key != "transparency"}
    return face


def storable(photo: Image.Image) -> Image.Image:
    """Return a photo in the nearest mode that can hold a restored face."""
    if photo.mode == "F":
        raise InputError("the photo holds 32-bit floats, whose range isn't known; convert it to 16 or 8 bits first")
    mode = INSTEAD.get(photo.mode, photo.mode)
    if mode in ("L", "RGB") and photo.has_transparency_data:
        mode = {"L": "LA", "RGB": "RGBA"}[mode]
    if mode == "I;16" and photo.mode != mode:
        return Image.fromarray(np.asarray(photo).clip(0, 65535).astype(np.uint16))
    if mode not in KEPT:
        raise InputError(f"a photo of mode {photo.mode} isn't known; convert it to RGB first")
    return photo if photo.mode == mode else photo.convert(mode)


def enlarged(photo: Image.Image, scale: int, upscaler: Callable | None = None) -> Image.Image:
    """Return a photo `scale` times as large: its colours by `upscaler`, all else by Lanczos."""
    size = (photo.width * scale, photo.height * scale)
    if scale == 1:
        return photo
    if photo.mode == "I;16":
        return Image.fromarray(cv2.resize(np.asarray(photo), size, interpolation=cv2.INTER_CUBIC))
    if upscaler is None or photo.mode == "CMYK":
        return photo.resize(size, Image.Resampling.LANCZOS)
    large = upscaler(photo.convert("RGB"), scale)
    if large.size != size:
        made, wanted = (" x ".join(map(str, sides)) for sides in (large.size, size))
        raise InputError(f"the upscaler made {made} px where {wanted} were asked for; mend or change it")
    if photo.mode in ("RGBA", "LA"):
        large.putalpha(photo.getchannel("A").resize(size, Image.Resampling.LANCZOS))
    return large.convert(photo.mode)
