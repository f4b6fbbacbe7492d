"""The installed command `lafr COMMAND`: chooses a command's module and lets it read the arguments."""

import importlib
import sys
from collections.abc import Sequence

from lafr import __version__
from lafr.commands.doors import Parser

# name -> (module with a function `command`, what it does); a module is imported when its command is called
COMMANDS = {
    "restore": ("restore", "restore the faces of photos and videos, and aligned faces"),
    "demo": ("demo", "serve a web page that restores the faces of a photo"),
    "train": ("train", "train the stages of an experiment"),
    "eval": ("evaluate", "restore a test set and score it, or score another method's images"),
    "tables": ("tables", "print the table of a result"),
    "reproduce": ("reproduce", "check, prepare, train, evaluate and print the table of an experiment"),
    "paper": ("paper", "list the paper's tables, run what they need, and print them"),
    "fid": ("fid", "write the statistics that FID compares with"),
    "prepare": ("prepare", "prepare a set of faces from what was downloaded"),
    "export": ("export", "export a model as a diffusers pipeline or an ONNX graph"),
    "build-mini": ("build_mini", "build the shipped miniature from nothing, or score its networks"),
    "check": ("check", "print versions, the device, and what is missing"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, and leaves through `SystemExit` when something went wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] not in COMMANDS:
        parser().parse_args(given or ["--help"])
    typed = sys.argv
    sys.argv = [f"lafr {given[0]}", *given[1:]]
    try:
        importlib.import_module(f"lafr.commands.{COMMANDS[given[0]][0]}").command()
    finally:
        sys.argv = typed
    return 0


def parser() -> Parser:
    """Return the parser of what comes before a command's own arguments."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:<{width}}  {does}" for name, (_, does) in COMMANDS.items())
    top = Parser(
        "LAFR: Latent Alignment for Face Restoration.",
        name="lafr",
        usage="lafr COMMAND ...",
        epilog=f"commands (lafr COMMAND --help says more):\n{commands}",
    )
    top.add_argument("--version", action="version", version=f"lafr {__version__}")
    top.add_argument("command", metavar="COMMAND", choices=list(COMMANDS), help="one of the commands below")
    return top


if __name__ == "__main__":
    sys.exit(main())
