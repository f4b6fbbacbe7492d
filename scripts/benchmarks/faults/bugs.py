"""Small inputs that were once restored wrongly, from a folder outside the repository: each is right now.

`CHECKS` says of each name what was wrong and what is right; a name that the folder lacks is not tried.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lafr.errors import InputError
from lafr.photos.turning import roll_of
from scripts.benchmarks.faults import Trial
from scripts.benchmarks.faults.runs import run

FOLDER = "LAFR_FAULTS_INPUTS"  # environment variable: the folder of the inputs
LEVEL = "plain.png"  # the upright face of which the rolled ones are turned copies
CLOSE = 5.0  # degrees
Line = dict  # of the journal


def restored_faces(line: Line, out: Path) -> str:
    """Return what is wrong unless one face was found and restored."""
    found = [face["status"] for face in line["faces"]]
    return "" if found == ["restored"] else f"faces: {found}"


def rolled(degrees: float, line: Line, out: Path) -> str:
    """Return what is wrong unless the one face lies as the level one turned by `degrees` counterclockwise."""
    level = journal(out)[LEVEL]["faces"]
    if wrong := restored_faces(line, out):
        return wrong
    turned = roll_of(np.array(line["faces"][0]["points"])) - roll_of(np.array(level[0]["points"])) + degrees
    error = abs((turned + 180) % 360 - 180)
    return "" if error <= CLOSE else f"its roll is {error:.1f} degrees off"


def says(words: tuple[str, ...], line: Line, out: Path) -> str:
    """Return what is wrong unless the line's warnings hold all of `words`."""
    said = " ".join(line["warnings"])
    return "" if all(word in said for word in words) else f"warnings: {said or 'none'}"


def keeps(facts: Callable[[Image.Image], bool], line: Line, out: Path) -> str:
    """Return what is wrong unless the output has `facts`."""
    with Image.open(out / line["output"]) as image:
        return "" if facts(image) else f"{image.mode}, {sorted(image.info)}"


def keeps_streams(source: str, line: Line, out: Path) -> str:
    """Return what is wrong unless the output has the input's kinds of streams, or a warning names each lost one."""
    import av

    def kinds(path: Path) -> list[str]:
        with av.open(str(path)) as container:
            return sorted(stream.type for stream in container.streams)

    before, after = kinds(out.parent / "in" / source), kinds(out / line["output"])
    return "" if before == after or line["warnings"] else f"{before} became {after}"


def whole_frames(line: Line, out: Path) -> str:
    """Return what is wrong unless the video's faces stand in its line, restored or left."""
    return "" if line["frames"] and line["faces_restored"] + sum(line["left"].values()) else f"{line}"


def no_smaller(line: Line, out: Path) -> str:
    """Return what is wrong unless a sharp portrait keeps its size, or both sizes are said."""
    with Image.open(out / line["output"]) as image:
        return "" if image.size == (1080, 1080) else f"it came out at {image.size}"


def no_word_of_16_bits(line: Line, out: Path) -> str:
    """Return what is wrong where an 8-bit file is said to have 16 bits."""
    return "16 bits" if "16 bits" in " ".join(line["warnings"]) else ""


def holds(chunk: bytes, line: Line, out: Path) -> str:
    """Return what is wrong unless the output's bytes hold `chunk`."""
    return "" if chunk in (out / line["output"]).read_bytes() else f"no {chunk.decode()}"


# input -> the kind of fault, further options of the command, and what is right
CHECKS: dict[str, tuple[str, tuple[str, ...], Callable[[Line, Path], str]]] = {
    LEVEL: ("faces that lie", (), restored_faces),
    "roll_45.png": ("faces that lie", (), partial(rolled, 45)),
    "roll_90.png": ("faces that lie", (), partial(rolled, 90)),
    "roll_180.png": ("faces that lie", (), partial(rolled, 180)),
    "cmyk_exif.jpg": ("one bad file", (), partial(keeps, lambda image: bool(image.getexif().get_ifd(0x8769)))),
    "w720.bmp": ("colour facts", (), no_word_of_16_bits),
    "lab.tif": ("colour facts", (), partial(says, ("profile", "Lab"))),
    "linear_gama.png": ("colour facts", (), partial(holds, b"gAMA")),
    "square_icc.png": (
        "aligned faces",
        ("--aligned=true",),
        partial(keeps, lambda image: "icc_profile" in image.info and "dpi" in image.info),
    ),
    "avatar_1080.jpg": ("aligned faces", (), no_smaller),
    "closeup.mp4": ("videos", ("--force",), whole_frames),
    "hdr.mp4": ("videos", (), partial(says, ("HDR",))),
    "subtitled.mkv": ("videos", (), partial(keeps_streams, "subtitled.mkv")),
    "pcm.avi": ("videos", (), partial(keeps_streams, "pcm.avi")),
}


def journal(out: Path) -> dict[str, Line]:
    """Return the last line of each file."""
    path = out / "restored.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {line["file"]: line for line in map(json.loads, lines)}


def restore(folder: Path, names: tuple[str, ...], options: tuple[str, ...]) -> None:
    """Run the command with the miniature."""
    from lafr.commands.cli import main

    main(["restore", *(str(folder / "in" / name) for name in names), "-o", str(folder / "out"), "--quiet", *options])


def trials(count: int, seed: int, folder: Path) -> Iterator[Trial]:
    """Restore at most `count` of the inputs, those of the same options at once."""
    source = Path(os.environ.get(FOLDER, ""))
    names = [name for name in CHECKS if (source / name).is_file()][:count]
    if not os.environ.get(FOLDER) or not names:
        raise InputError(f"no known input: the environment variable {FOLDER} must name their folder")
    (folder / "in").mkdir()
    for name in names:
        shutil.copyfile(source / name, folder / "in" / name)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault(CHECKS[name][1], []).append(name)
    ended = {
        options: run(partial(restore, folder, tuple(together), options), folder / "said.txt")
        for options, together in groups.items()
    }
    lines = journal(folder / "out")
    for name in names:
        what, options, check = CHECKS[name]
        line = lines.get(name)
        if line is None or line["status"] != "done":
            yield Trial(what, name, "lost", line["reason"] if line else ended[options].said[-300:])
        else:
            wrong = check(line, folder / "out")
            yield Trial(what, name, "silent" if wrong else "held", wrong)
