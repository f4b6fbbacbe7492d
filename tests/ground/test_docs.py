"""Every code block of the pages runs, or is checked, or says above it why it cannot; what the pages name exists."""

import argparse
import ast
import re
import shlex
import tomllib
from pathlib import Path

import hydra
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import lafr
from lafr.commands import build_mini, paper, reproduce, restore, tables
from lafr.commands.launch import composed, quote_paths

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "data/README.md", "data/mini/README.md")),
    *(ROOT / "results" / name for name in ("findings.md", "benchmarks/README.md")),
]
EXEMPT = r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?"
BLOCK = re.compile(rf"{EXEMPT}^```(?P<kind>[a-z]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SHOWN = {"text", "bibtex"}  # outputs, and what no one runs
CONFIGS = {"train": "train", "eval": "eval", "prepare": "prepare_data", "export": "export", "demo": "demo"}
CONFIGS |= {"fid": "fid_statistics", "check": "train"}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1].split()
# what a page names in code, of these folders; data/ also holds what is downloaded
TOPS = (ROOT, ROOT / "examples")
NAMED = re.compile(r"`((?:lafr|configs|scripts|tests|docs|results|\.github)/[\w./-]+?)`")


def blocks(page: Path, *kinds: str) -> list[str]:
    """Return the page's blocks of these kinds that are not exempt."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    wanted = [block for block in found if block["kind"] in kinds and not block["reason"]]
    return [block["code"] for block in wanted if not block["code"].startswith("--8<--")]  # a file: test_examples.py


def parsed(command: str, given: list[str]) -> None:
    """Let the parser of an argparse command read its arguments; raises SystemExit where it refuses them."""
    if command in ("restore", "build-mini"):
        parser = {"restore": restore, "build-mini": build_mini}[command].parser()
    else:
        parser = argparse.ArgumentParser()
        {"tables": tables, "reproduce": reproduce, "paper": paper}[command].add_arguments(parser)
    known = parser.parse_args(given)
    if command == "reproduce":
        composed("train", f"+experiment={known.experiment}")


def first_of_sweep(override: str) -> str:
    """Return the override of a sweep's first job."""
    (read,) = OverridesParser.create().parse_overrides(quote_paths([override]))
    if not read.is_sweep_override():
        return override
    return f"{override.partition('=')[0]}={next(read.sweep_string_iterator())}"


def check_lafr(command: str, given: list[str]) -> None:
    """Check the arguments of `lafr COMMAND` as the command itself reads them, without what it does."""
    if command not in CONFIGS or (command == "check" and not any("=" in word for word in given)):
        assert command == "check" or parsed(command, given) is None
        return
    settings = [word for word in given if not word.startswith(("-", "hydra"))]
    sweep = {"-m", "--multirun"} & set(given)
    settings = [first_of_sweep(word) for word in settings] if sweep else settings
    evaluated = command == "check" and any(word.startswith("benchmark=") for word in settings)
    composed("eval" if evaluated else CONFIGS[command], *settings)


def check_shell(line: str) -> None:
    """Check one line of a shell block; raises where a command, option, setting, target or extra does not exist."""
    words = shlex.split(line, comments=True)
    while words and (words[0] == "export" or re.fullmatch(r"\w+=.*", words[0])):
        words.pop(0)
    match words:
        case []:
            return
        case ["make", target]:
            assert target in TARGETS
        case ["pip", "install", what]:
            extras = re.match(r"lafr\[([\w,]+)\]", what)
            assert not extras or set(extras[1].split(",")) <= EXTRAS.keys()
        case ["lafr", command, *given] | ["python", "-m", "lafr", command, *given]:
            check_lafr(command, given)
        case ["python", "-m", "scripts.benchmarks", topic, *_]:
            assert (ROOT / "scripts" / "benchmarks" / f"{topic}.py").is_file() or topic == "faults"
        case ["accelerate", "launch", *given]:
            at = next(i for i, word in enumerate(given) if word.startswith("scripts/"))
            files = [word for word in given[:at] if word.endswith(".yaml")]
            assert all((ROOT / file).is_file() for file in files)
            check_shell(shlex.join(["python", *given[at:]]))
        case ["python", script, *given]:
            name = {"prepare_data": "prepare"}.get(Path(script).stem, Path(script).stem)
            assert (ROOT / script).is_file()
            if "--config-dir" not in given:  # a folder of the page's own
                check_lafr(name, given)
        case _:
            raise AssertionError(f"nothing checks {words[0]!r}; write <!-- not run: REASON --> above the block")


def test_shell_blocks_name_commands_options_and_settings_that_exist():
    wrong = []
    for page in PAGES:
        for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
            try:
                check_shell(line)
            except (Exception, SystemExit) as error:
                wrong.append(f"{page.name}: {line}: {error}")
    assert not wrong, "\n".join(wrong)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for page in PAGES:
        names = {"__name__": page.stem}  # blocks of a page follow each other
        for code in blocks(page, "python"):
            if ">>>" not in code:  # test_readme.py
                exec(compile(code, page.name, "exec"), names)


def test_every_other_block_is_yaml_or_is_shown_only():
    for page in PAGES:
        for block in BLOCK.finditer(page.read_text(encoding="utf-8")):
            assert block["kind"] in {"bash", "python", "yaml", *SHOWN}, f"{page.name}: {block['code'][:60]}"
            if block["kind"] == "yaml" and not block["code"].startswith("--8<--"):
                assert yaml.safe_load(block["code"])


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_files_and_headings_that_pages_name_and_link_to_exist():
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        linked = re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", text)
        lost = [link for link, _ in linked if not (page.parent / link).exists()]
        to_headings = [(page.parent / link if link else page, at) for link, at in linked if at]
        lost += [f"{target.name}#{at}" for target, at in to_headings if at not in anchors(target)]
        lost += [name for name in NAMED.findall(text) if not any((top / name).exists() for top in TOPS)]
        assert not lost, f"{page.name}: {lost}"


def test_every_message_of_the_troubleshooting_page_is_one_that_the_code_prints():
    code = [*(ROOT / "lafr").rglob("*.py"), *Path(hydra.__file__).parent.glob("_internal/*.py")]
    pieces = set()  # of at least two words: in an f-string what stands between its values
    for path in code:
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = (node.value for node in tree if isinstance(node, ast.Constant))
        pieces |= {text.strip() for text in texts if isinstance(text, str)}
    pieces = [piece for piece in pieces if len(piece) > 9 and " " in piece]
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(messages) >= 20
    assert [message for message in messages if not any(piece in message for piece in pieces)] == []


def test_the_pages_name_every_extra_and_the_version_and_the_site_has_every_page():
    commands = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert all(f"lafr[{extra}]" in commands for extra in EXTRAS.keys() - {"dev", "docs", "train"})
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(page.name in nav for page in (ROOT / "docs").glob("*.md"))
    api = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert all(f"::: {lafr._MODULES[name]}.{name}\n" in api for name in lafr.__all__)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert cited["version"] == lafr.__version__
    started = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert re.findall(r"^lafr {5,}(\S+)$", started, re.MULTILINE) == [lafr.__version__]
    assert f"## [{lafr.__version__}] - {cited['date-released']}" in changes
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", changes, re.MULTILINE)) <= kinds
