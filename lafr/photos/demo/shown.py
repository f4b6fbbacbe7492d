"""The result as a visitor sees it: before and after under a slider, and a report of every face."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO

from PIL import Image

from lafr.images import to_rgb
from lafr.photos.restorer import PhotoResult

LONGEST = 1600  # pixels of the images under the slider; the download has full size
FACE = 192, 512  # least and most pixels of a face in the list, which enlarges when it is pressed
AROUND = 0.35  # share of its box shown around a face
MANY = 24  # faces, above which none is stored larger than the least: the page would have megabytes

EMPTY = '<p class="empty">Your photo is shown here, and then its restoration.</p>'


def comparison(photo: Image.Image, result: PhotoResult) -> str:
    """Return HTML: the photo and its restoration under a slider; the photo alone when no face was restored."""
    before, after = slider_pair(photo, result.image)
    if not any(face.status == "restored" for face in result.faces):
        return f'<figure class="photo"><img src="{_data_uri(before)}" alt="Your photo, unchanged"></figure>'
    label = "Before and after: position of the edge, before is left of it"
    return (
        f'<figure class="compare" style="--ratio: {before.width / before.height:.4f}; --cut: 50%">'
        f'<img src="{_data_uri(before)}" alt="Photo before"><img src="{_data_uri(after)}" alt="Photo after">'
        '<div class="edge"></div><span class="tag">Before</span><span class="tag">After</span>'
        f'<input type="range" min="0" max="100" value="50" aria-label="{label}">'
        '<button type="button" class="enlarge" aria-pressed="false" aria-label="Enlarge"></button></figure>'
    )


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
    largest = FACE[1] if len(result.faces) <= MANY else FACE[0]
    items = []
    for number, face in enumerate(result.faces, 1):
        restored = face.status == "restored"
        pictures = [(_crop(photo, face.box, largest), f"Face {number} before")]
        if restored:
            pictures.append((_crop(after, [value * scale for value in face.box], largest), f"Face {number} after"))
        shown = "".join(f'<img src="{_data_uri(image)}" alt="{alt}">' for image, alt in pictures)
        done = "restored" if restored else f"left as it is: {face.reason}"
        notes = "".join(f"<br><small>{escape(warning)}</small>" for warning in face.warnings)
        what = f"<b>Face {number}</b>, {face.side:.0f} px: {escape(done)}{notes}"
        item = f"<details><summary><span>{shown}</span><p>{what}</p></summary></details>"
        items.append(f'<li class="face {escape(face.status)}">{item}</li>')
    return f'<h2>Faces</h2><p>Press one to enlarge it.</p><ul class="faces">{"".join(items)}</ul>' if items else ""


def summary(result: PhotoResult) -> str:
    """Return one sentence on what became of the photo."""
    if not result.faces:
        return "No face was found, so the photo is unchanged. Faces in profile and very small ones are missed."
    count = len(result.faces)
    restored = sum(face.status == "restored" for face in result.faces)
    left = f", {count - restored} left as it was" if restored < count else ""
    return f"{restored} of {count} {'face' if count == 1 else 'faces'} restored{left}, in {result.seconds:.1f} s."


def _crop(image: Image.Image, box: Sequence[float], largest: int) -> Image.Image:
    x0, y0, x1, y1 = box
    half = max(x1 - x0, y1 - y0, 2) * (0.5 + AROUND)
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    square = image.crop((round(x - half), round(y - half), round(x + half), round(y + half)))
    side = min(max(square.width, FACE[0]), largest)
    return square.resize((side, side), Image.Resampling.BICUBIC)


def _data_uri(image: Image.Image) -> str:
    data = BytesIO()
    to_rgb(image).save(data, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
