"""Serve a web page that restores the faces of a visitor's photo: `lafr demo`."""

import importlib.util
import signal
import sys
import threading
from contextlib import suppress

from omegaconf import DictConfig

from lafr.commands.launch import run
from lafr.errors import need

MINIATURE = (
    "The shipped miniature at 128 px: it shows that the method works, it is **not a tool for your photographs**."
)


def main(cfg: DictConfig) -> None:
    """Serve until stopped; every visitor's file is removed then."""
    if importlib.util.find_spec("gradio") is None:
        need("gradio", "'lafr[demo]'")  # before the model, which takes longer
    print(f"loading {cfg.model.folder} ...", file=sys.stderr, flush=True)
    from hydra.utils import instantiate

    from lafr.commands.devices import choose_device
    from lafr.models.restorer import Restorer
    from lafr.photos.demo import is_loopback, running
    from lafr.photos.demo.examples import installed_examples
    from lafr.photos.restorer import PhotoRestorer

    limits = instantiate(cfg.limits)
    restorer = Restorer.from_pretrained(cfg.model.folder, cfg.base, decoder=cfg.decoder).to(choose_device(cfg.device))
    photo_restorer = PhotoRestorer(restorer, instantiate(cfg.detector), cfg.batch_size)
    examples = installed_examples(instantiate(cfg.examples)) if cfg.examples else {}
    note = MINIATURE if str(cfg.model.folder).startswith("mini") else f"A model at {restorer.resolution} px."
    if not is_loopback(cfg.host):
        print(f"warning: host={cfg.host}: everyone who can reach this machine can use the page", file=sys.stderr)
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # the default handler would leave the temporary folder
    with running(photo_restorer, cfg.host, cfg.port, limits, note, examples, list(cfg.names)) as address:
        print(f"serving {address} (stop with Ctrl-C)", flush=True)
        if cfg.open:
            import webbrowser

            webbrowser.open(address)
        with suppress(KeyboardInterrupt):
            stopped.wait()
    print("stopped; every visitor's file is removed")


def command() -> None:
    """Run the command line."""
    run(main, "demo")


if __name__ == "__main__":
    command()
