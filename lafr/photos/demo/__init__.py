"""A web page that restores the faces of a visitor's photo: `lafr demo`.

Gradio (`pip install 'lafr[demo]'`) serves it. Nothing leaves the machine, and no file of a visitor is kept on it.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from PIL import Image

from lafr.errors import InputError, need, setting
from lafr.photos.demo.guard import Guard, is_loopback
from lafr.photos.demo.limits import Limits
from lafr.photos.demo.visits import kept_for
from lafr.photos.restorer import PhotoRestorer

__all__ = ["Limits", "is_loopback", "running"]

# Read by Gradio and huggingface_hub when they are imported: no analytics, no check for a newer version.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


@contextmanager
def running(
    photo_restorer: PhotoRestorer,
    host: str = "127.0.0.1",
    port: int | None = None,
    limits: Limits = Limits(),  # noqa: B008  (frozen)
    note: str = "",
    examples: Mapping[str, Callable[[], Image.Image]] | None = None,
    names: Sequence[str] = (),
) -> Iterator[str]:
    """Serve the page while the context lasts; yields its address.

    Args:
        photo_restorer: a `lafr.photos.restorer.PhotoRestorer`.
        host: address to listen on; only this machine reaches the default.
        port: 0..65535; the first free one from 7860 when None.
        limits: what a visitor may ask for.
        note: Markdown under the heading: what the model is, and isn't, good for.
        examples: label -> a function that makes the photo.
        names: further host names that the page is reached by, such as a proxy's; see `lafr.photos.demo.guard.Guard`.

    Raises InputError when Gradio is missing or the port is taken.
    """
    if port is not None and not (type(port) is int and 0 <= port <= 65535):
        raise InputError("port", port, "a number from 0 to 65535")
    os.environ.update(QUIET)
    with kept_for(limits.keep_seconds) as folder:
        os.environ["GRADIO_TEMP_DIR"] = str(folder)  # uploads and results; Gradio makes a folder there on import
        need("gradio", "'lafr[demo]'")
        from starlette.middleware import Middleware

        from lafr.photos.demo.page import LOOK, build_page

        page = build_page(photo_restorer, folder, limits, note, examples or {})
        page.queue(max_size=limits.waiting, default_concurrency_limit=1)
        allowed = dict(upload_bytes=limits.megabytes * 1e6, total_bytes=limits.total_megabytes * 1e6)
        guard = Middleware(Guard, host=host, names=names, folder=folder, functions=len(page.fns), **allowed)
        try:
            _, address, _ = page.launch(
                server_name=host,
                server_port=port,
                max_file_size=f"{limits.megabytes}mb",
                app_kwargs={"middleware": [guard]},
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                pwa=False,
                mcp_server=False,
                ssr_mode=False,
                **LOOK,
            )
        except OSError as error:
            raise InputError(
                f"cannot listen on {host}, port {port} ({error}); give another {setting('port')}"
            ) from None
        try:
            yield address
        finally:
            page.close(verbose=False)
