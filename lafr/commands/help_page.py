"""The help page of a Hydra command, read from its configuration's own comments: nothing is composed or imported."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from lafr.storage import shipped

# configuration -> files of its groups whose settings the page lists too, by the key that they stand under
EXPANDED = {
    "train": {"trainer": "trainer/default", "data": "data/faces", "stage.restoration": "stage/restoration"},
}
OPTIONS = """\
  -m, --multirun       run every combination of values given as KEY=A,B
  --config-dir DIR     look for configurations in DIR too: DIR/GROUP/MINE.yaml is GROUP=MINE
  --cfg job            print the composed configuration and stop
  --hydra-help         Hydra's own options, shell completion among them
  -h, --help           print this page"""
DEFAULT = re.compile(r"  - (?:optional )?(?P<group>[\w/]+): (?P<choice>[^\s#]+)(?: +# (?P<comment>.*))?$")

EXAMPLE = re.compile(r"^(  +)(python scripts/\w+\.py|python -m scripts\.benchmarks \w+|lafr [\w-]+)")


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Tell whether a command line asks for the page."""
    return bool({"-h", "--help"} & set(arguments))


def help_page(config_name: str, program: str, arguments: Sequence[str] = ()) -> str:
    """Return the page of the command that composes `configs/<config_name>.yaml`.

    Args:
        config_name: of the command.
        program: its name as typed, which takes the place of another in the examples.
        arguments: of the command line: a `--config-dir` adds its choices.
    """
    folders = [shipped("configs"), *config_dirs(arguments)]
    header, defaults, settings = parts(folders[0] / f"{config_name}.yaml")
    header = [EXAMPLE.sub(lambda match: match[1] + program, line) for line in header]
    lines = [f"usage: {program} [KEY=VALUE ...]", "", *header]
    groups = [(match["group"], match["choice"], match["comment"]) for match in map(DEFAULT.match, defaults) if match]
    groups += [(f"+{name}", None, None) for name in dict.fromkeys(re.findall(r" \+(\w+)=", "\n".join(header)))]
    groups = [group for group in groups if (folders[0] / group[0].lstrip("+")).is_dir()]
    if groups:
        lines += ["", "Groups, GROUP=CHOICE (a file of configuration each; * is the default):"]
    for name, default, comment in groups:
        lines += group_lines(name, default, comment, choices(folders, name.lstrip("+")))
    lines += ["", "Settings, KEY=VALUE (a dot leads inside: model.folder=FOLDER):", *settings]
    for key, file in EXPANDED.get(config_name, {}).items():
        lines += ["", f"{key}.*, as configs/{file}.yaml sets them:", *body(folders[0] / f"{file}.yaml")]
    return "\n".join([*lines, "", "Options:", OPTIONS])


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """Return the folders that `--config-dir` (or `-cd`) names."""
    apart = [Path(value) for flag, value in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    return apart + [Path(a.partition("=")[2]) for a in arguments if a.startswith("--config-dir=")]


def choices(folders: Sequence[Path], group: str) -> list[str]:
    """Return the names of a group's files."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def group_lines(name: str, default: str | None, comment: str | None, found: Sequence[str]) -> Iterator[str]:
    """Yield a group's choices, wrapped."""
    shown = ", ".join(f"{choice}*" if choice == default else choice for choice in found)
    if default == "???":
        shown += "  (required)"
    text = textwrap.fill(shown, 94, break_on_hyphens=False).splitlines()
    yield f"  {f'{name}=':<18} {text[0]}"
    yield from (f"{'':20} {line}" for line in text[1:])
    if comment:
        yield f"{'':20} # {comment}"


def parts(path: Path) -> tuple[list[str], list[str], list[str]]:
    """Return a configuration's first comments, its defaults list and its own settings, as lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    header = [line.removeprefix("#").removeprefix(" ") for line in lines[:end]]
    rest = lines[end:]
    start = rest.index("defaults:") + 1 if "defaults:" in rest else 0
    stop = next((n for n in range(start, len(rest)) if not rest[n].startswith("  - ")), len(rest)) if start else 0
    own = rest[stop:]
    if "hydra:" in own:
        own = own[: own.index("hydra:")]
    return header, rest[start:stop], [f"  {line}" for line in own if line.strip()]


def comment_of(config_name: str, key: str) -> str:
    """Return the comment next to a setting of `configs/<config_name>.yaml`."""
    *_, settings = parts(shipped("configs") / f"{config_name}.yaml")
    line = next((line for line in settings if line.startswith(f"  {key}: ")), "")
    return line.partition(" # ")[2]


def body(path: Path) -> Iterator[str]:
    """Yield a group file's settings with their comments, those of the files that it is based on first."""
    for line in path.read_text(encoding="utf-8").splitlines():
        based_on = re.match(r"defaults: \[([\w, ]+)\]", line)
        if based_on:
            for name in based_on[1].split(", "):
                yield from body(path.with_name(f"{name}.yaml"))
        elif not line.startswith(("_target_", "#", "  ", "objective:")) and line.strip():
            yield f"  {line}"
