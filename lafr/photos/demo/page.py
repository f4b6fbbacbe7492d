"""The page: its layout, and the functions behind its buttons."""

import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import gradio as gr
from PIL import Image

from lafr.errors import InputError
from lafr.photos.demo.guard import used
from lafr.photos.demo.limits import Limits, read_upload, time_limit
from lafr.photos.demo.shown import face_list, slider_pair, summary
from lafr.photos.restorer import PhotoRestorer, PhotoResult

Examples = Mapping[str, Callable[[], Image.Image]]  # label of a button -> its photo

CSS = """
.gradio-container { max-width: 1100px !important; width: 100% !important; margin: 0 auto !important; }
.faces { list-style: none; margin: 0; padding: 0; display: grid; gap: 8px;
         grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); }
.faces li { display: flex; gap: 10px; align-items: center; padding: 8px; margin: 0;
            border: 1px solid var(--border-color-primary); border-radius: 8px; }
.faces span { display: flex; gap: 4px; flex: none; }
.faces img { width: 96px; height: 96px; border-radius: 4px; margin: 0; }
.faces p { margin: 0; font-size: 0.9rem; overflow-wrap: anywhere; }
#status p { font-size: 1.05rem; }
@media (max-width: 480px) { .faces { grid-template-columns: 1fr; } .faces img { width: 72px; height: 72px; } }
"""
# System fonts: Gradio's own theme would fetch its fonts from Google. Its hints are too pale to be read outdoors.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    block_info_text_color="*neutral_600", block_info_text_color_dark="*neutral_300"
)
# On a phone the result is below the controls. Gradio lays it out after this call, which would interrupt a scroll.
TO_RESULT = """() => { if (matchMedia("(max-width: 640px)").matches)
  setTimeout(() => document.querySelector("#status").scrollIntoView({ behavior: "smooth" }), 400); }"""
LOOK: dict[str, Any] = dict(theme=THEME, css=CSS)
# parameter -> its label on the page: errors name what a visitor sees
LABELS = {"fidelity": "Fidelity", "force": "All faces", "photo": "Photo"}


def spell(parameter: str, value: str | None = None) -> str:
    """Spell a parameter as the page labels it: “Fidelity”; a switch that is on is “All faces” alone."""
    label = f"“{LABELS.get(parameter, parameter)}”"
    return label if value in (None, "True") else f"{label} {value}"


def build_page(photo_restorer: PhotoRestorer, folder: Path, limits: Limits, note: str, examples: Examples) -> gr.Blocks:
    """Return the page; downloads are written into `folder`, which must be Gradio's own temporary folder."""
    work = partial(restore, photo_restorer, folder, limits)
    rules = f"Up to {limits.megabytes} MB and {limits.megapixels:g} megapixels."
    minutes = max(1, round(limits.keep_seconds / 60))
    with gr.Blocks(title="LAFR: face restoration", analytics_enabled=False) as page:
        gr.Markdown(f"# Restore the faces of a photo\n{note}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(
                    label=f"{LABELS['photo']}. {rules}", file_types=["image"], height=150, elem_id="upload"
                )
                fidelity = gr.Slider(
                    0,
                    1,
                    0,
                    step=0.05,
                    label=LABELS["fidelity"],
                    elem_id="fidelity",
                    info="0: as sharp as the model can. 1: closest to the photo, with the least invented detail.",
                )
                force = gr.Checkbox(
                    False,
                    label=LABELS["force"],
                    elem_id="force",
                    info="Also those that are larger than the model can make sharper, or in profile.",
                )
                button = gr.Button("Restore", variant="primary", elem_id="restore")
                gr.Markdown(f"Your photo stays on this server for at most {minutes} min, and is sent nowhere else.")
                if examples:
                    gr.Markdown("Or try one of these, degraded on purpose:")
                    with gr.Row():
                        pressed = {label: gr.Button(label, size="sm", min_width=120) for label in examples}
            with gr.Column(scale=2, min_width=300):
                status = gr.Markdown(elem_id="status")
                slider = gr.ImageSlider(
                    label="Before | after",
                    type="pil",
                    format="webp",
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=640,
                    elem_id="slider",
                )
                download = gr.DownloadButton("Download", visible=False, elem_id="download")
                faces = gr.HTML(elem_id="faces", padding=False)
        outputs = [status, slider, faces, download]
        quiet: dict[str, Any] = dict(api_visibility="private", concurrency_id="work", concurrency_limit=1)
        done = [button.click(work, [upload, fidelity, force], outputs, **quiet)]
        for label, make in examples.items():
            made = partial(work, None, make=make, name=label)
            done.append(pressed[label].click(made, [fidelity, force], outputs, **quiet))
        for event in done:
            event.then(None, js=TO_RESULT)
    return page


def restore(
    photo_restorer: PhotoRestorer,
    folder: Path,
    limits: Limits,
    upload: str | None,
    fidelity: float,
    force: bool,
    make: Callable[[], Image.Image] | None = None,
    name: str = "photo",
) -> tuple:
    """Restore an upload, or the photo that `make` makes; return the status, slider, faces and download shown."""
    try:
        if used(folder) > limits.total_megabytes * 1e6:
            raise InputError("there is no room for more photos at the moment; try again in some minutes")
        if make is not None:
            photo = make()
        elif upload is not None:
            photo = read_upload(upload, limits)
        else:
            raise InputError("choose a photo first")
        with time_limit(photo_restorer.restorer, limits.seconds):
            result = cast(PhotoResult, photo_restorer(photo, fidelity=fidelity, force=force))
    except InputError as error:
        return f"**Not restored:** {_literal(error.spelled(spell))}", None, "", gr.DownloadButton(visible=False)
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        return "**Not restored:** something went wrong here.", None, "", gr.DownloadButton(visible=False)
    place = Path(tempfile.mkdtemp(dir=folder)) / f"{Path(upload).stem if upload else name}_restored.png"
    result.image.save(place)
    shown = slider_pair(photo, result.image)
    return summary(result), shown, face_list(photo, result), gr.DownloadButton(value=str(place), visible=True)


def _literal(text: str) -> str:
    """Return text escaped for Markdown, for the names of uploaded files."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]()<>#+-.!|~$&" else c for c in text)
