"""The result as a visitor sees it: before and after at one size, and a report of every face."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

from lafr.images import to_rgb
from lafr.photos.restorer import PhotoResult

LONGEST = 1600  # pixels of the images under the slider; the download has full size
FACE = 192  # pixels of a face in the list
AROUND = 0.35  # share of its box shown around a face


def slider_pair(photo: Image.Image, restored: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the photo and its restoration as RGB, both at the size of the restoration or shrunk to `LONGEST`."""
    scale = min(1.0, LONGEST / max(restored.size))
    size = (max(1, round(restored.width * scale)), max(1, round(restored.height * scale)))
    before, after = (to_rgb(image).resize(size, Image.Resampling.LANCZOS) for image in (photo, restored))
    return before, after


def face_list(photo: Image.Image, result: PhotoResult) -> str:
    """Return HTML: each face before and after, what was done, why not, and warnings; all text escaped."""
    scale = result.image.width / photo.width
    after = to_rgb(result.image)
    items = []
    for number, face in enumerate(result.faces, 1):
        restored = face.status == "restored"
        pictures = [(_crop(photo, face.box), f"Face {number} before")]
        if restored:
            pictures.append((_crop(after, [value * scale for value in face.box]), f"Face {number} after"))
        shown = "".join(f'<img src="{_data_uri(image)}" alt="{alt}">' for image, alt in pictures)
        done = "restored" if restored else f"left as it is: {face.reason}"
        notes = "".join(f"<br><small>{escape(warning)}</small>" for warning in face.warnings)
        what = f"<b>Face {number}</b>, {face.side:.0f} px: {escape(done)}{notes}"
        items.append(f'<li class="face {escape(face.status)}"><span>{shown}</span><p>{what}</p></li>')
    return f'<ul class="faces">{"".join(items)}</ul>' if items else ""


def summary(result: PhotoResult) -> str:
    """Return one sentence on what became of the photo."""
    if not result.faces:
        return "No face was found, so the photo is unchanged. Faces in profile and very small ones are missed."
    count = len(result.faces)
    restored = sum(face.status == "restored" for face in result.faces)
    left = f", {count - restored} left as it was" if restored < count else ""
    return f"{restored} of {count} {'face' if count == 1 else 'faces'} restored{left}, in {result.seconds:.1f} s."


def _crop(image: Image.Image, box: Sequence[float]) -> Image.Image:
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0, 2) * (0.5 + AROUND)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    square = image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    return square.resize((FACE, FACE), Image.Resampling.BICUBIC)


def _data_uri(image: Image.Image) -> str:
    data = BytesIO()
    image.save(data, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
