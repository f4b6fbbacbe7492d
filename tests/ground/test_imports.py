"""The import rule: which rooms of the package may import which. Read from the syntax tree; nothing is run."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lafr"
GROUND = {"errors", "storage", "provenance", "images", "weights", "alignment"}
METHOD = {"data", "networks", "models"}
SCORED = {"losses", "metrics"}
USED = {"training", "evaluation", "photos"}
# room -> the rooms that it may import, besides itself and the ground floor
ALLOWED = (
    {room: set() for room in METHOD}
    | {room: METHOD for room in SCORED}
    | {room: METHOD | SCORED for room in USED}
    | {room: METHOD | SCORED | USED for room in ("export", "preparation")}
    | {"miniature": METHOD | SCORED | USED | {"export", "preparation"}}
    | {"commands": METHOD | SCORED | USED | {"export", "preparation", "miniature"}}
)
ENTRANCES = {"__init__", "__main__"}


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_of(path: Path) -> set[str]:
    names = [name.split(".") for name in imported(path)]
    known = {*GROUND, *ALLOWED}
    return {name[1] for name in names if name[0] == "lafr" and len(name) > 1 and name[1] in known}


def broken(path: Path) -> set[str]:
    """Return the rooms that a file of the package imports against the rule."""
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room in ENTRANCES:
        return set()
    return rooms_of(path) - GROUND - ALLOWED.get(room, set()) - {room}


def test_a_room_imports_only_what_lies_below_it():
    found = {str(path.relative_to(PACKAGE)): broken(path) for path in PACKAGE.rglob("*.py")}
    assert {path: rooms for path, rooms in found.items() if rooms} == {}


def test_nothing_lies_loose_but_the_ground_floor():
    loose = {path.stem for path in PACKAGE.glob("*.py")} - ENTRANCES
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert loose == GROUND and rooms == set(ALLOWED)


def test_only_the_commands_know_hydra_and_nobody_imports_scripts():
    for path in PACKAGE.rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert "scripts" not in tops, path
        assert path.relative_to(PACKAGE).parts[0] == "commands" or not tops & {"hydra", "omegaconf"}, path


def test_no_file_changes_the_import_path():
    for folder in ("lafr", "scripts", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            calls = [
                node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
            ]
            changed = [ast.unparse(call.func) for call in calls]
            assert not {"sys.path.insert", "sys.path.append"} & set(changed), path
