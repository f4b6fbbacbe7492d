"""The page: its layout, and the functions behind its buttons."""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, cast

import gradio as gr
from PIL import Image

from lafr.errors import InputError
from lafr.images import write_image
from lafr.photos.demo.guard import used
from lafr.photos.demo.limits import Limits, read_upload, time_limit
from lafr.photos.demo.shown import EMPTY, comparison, face_list, summary
from lafr.photos.restorer import PhotoRestorer, PhotoResult

HERE = Path(__file__).parent
Examples = Mapping[str, Callable[[], Image.Image]]  # label of a button -> its photo

# System fonts: Gradio's own theme would fetch its fonts from Google. Its hints are too pale to be read outdoors.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",  # white on Gradio's orange has a contrast of 2.8
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
# On a phone the result is below the controls. Gradio lays it out after this call, which would interrupt a scroll.
TO_RESULT = """() => { if (matchMedia("(max-width: 640px)").matches)
  setTimeout(() => document.querySelector("#status").scrollIntoView({ behavior: "smooth" }), 400); }"""
LOOK: dict[str, Any] = dict(theme=THEME, css=(HERE / "page.css").read_text("utf-8"))
VIEW = (HERE / "view.js").read_text("utf-8")
LIVE = "element.setAttribute('role', 'status')"  # screen readers speak what changes
NEW_PHOTO = "() => ['', '', { visible: false, __type__: 'update' }]"  # of status, faces and download
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
    # The order is that of a phone and of the keyboard: photo, button, result, and what one may pass over after them.
    with gr.Blocks(title="LAFR: face restoration", analytics_enabled=False) as page:
        gr.Markdown(f"# Restore the faces of a photo\n{note}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                upload = gr.File(
                    label=f"{LABELS['photo']}. {rules}", file_types=["image"], height=150, elem_id="upload"
                )
                button = gr.Button("Restore", variant="primary", elem_id="restore")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
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
                        info="Also those that are sharp, small, in profile or cut by the border.",
                    )
            with gr.Column(scale=2, min_width=300):
                status = gr.HTML(elem_id="status", js_on_load=LIVE)
                view = gr.HTML(EMPTY, elem_id="view", js_on_load=VIEW, apply_default_css=False)
                download = gr.DownloadButton("Download", visible=False, elem_id="download")
                faces = gr.HTML(elem_id="faces", js_on_load=None)
        if examples:
            gr.Markdown("Or try one of these, degraded on purpose:")
            with gr.Row():
                pressed = {label: gr.Button(label, size="sm", min_width=120) for label in examples}
        gr.Markdown(f"Your photo stays on this server for at most {minutes} min, and is sent nowhere else.")
        outputs = [status, view, faces, download]
        quiet: dict[str, Any] = dict(api_visibility="private", concurrency_id="work", concurrency_limit=1)
        quiet |= dict(show_progress_on=[view])
        done = [button.click(work, [upload, fidelity, force], outputs, **quiet)]
        for label, make in examples.items():
            made = partial(work, None, make=make, name=label)
            done.append(pressed[label].click(made, [fidelity, force], outputs, **quiet))
        for event in done:
            event.then(None, js=TO_RESULT)
        upload.upload(None, None, [status, faces, download], js=NEW_PHOTO)
        upload.clear(None, None, [view], js=f"() => {json.dumps(EMPTY)}")
        upload.clear(None, None, [status, faces, download], js=NEW_PHOTO)
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
    progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio looks for it among the defaults)
) -> tuple:
    """Restore an upload, or the photo that `make` makes; return the status, view, faces and download shown."""
    shown = gr.skip() if upload else EMPTY  # what is refused stays in view
    try:
        if used(folder) > limits.total_megabytes * 1e6:
            raise InputError("there is no room for more photos at the moment; try again in some minutes")
        if make is not None:
            photo = make()
        elif upload is not None:
            photo = read_upload(upload, limits)
        else:
            raise InputError("choose a photo first")
        progress(0, "Looking for faces")
        with time_limit(photo_restorer.restorer, limits.seconds):
            how: dict[str, Any] = dict(fidelity=fidelity, force=force, progress=partial(say, progress))
            result = cast(PhotoResult, photo_restorer(photo, **how))
        place = Path(tempfile.mkdtemp(dir=folder)) / f"{Path(upload).stem if upload else name}_restored.png"
        write_image(result.image, place)
    except InputError as error:
        return f"<b>Not restored:</b> {escape(error.spelled(spell))}", shown, "", gr.DownloadButton(visible=False)
    except Exception:
        logging.getLogger(__name__).exception("a request failed")
        return "<b>Not restored:</b> something went wrong here.", shown, "", gr.DownloadButton(visible=False)
    return (
        summary(result),
        comparison(photo, result),
        face_list(photo, result),
        gr.DownloadButton(value=str(place), visible=True),
    )


def say(progress: gr.Progress, done: int, total: int) -> None:
    """Say which face is worked on."""
    progress((done, total), f"Face {min(done + 1, total)} of {total}", unit="faces")
