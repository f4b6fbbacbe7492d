"""Hooks of mkdocs: pages that stand elsewhere in the repository join the site, and links work in both places.

Pages are written for the repository: a link is relative to the file that holds it. In the site it leads to a page, an
image, or, for any other file, to the repository's address where `LAFR_REPOSITORY` gives it. A link to nothing is a
warning, which `mkdocs build --strict` takes for an error.
"""

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# of the repository -> of the site
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "data/README.md": "data.md",
    "data/mini/README.md": "miniature.md",
    "results/benchmarks/README.md": "benchmarks.md",
    "results/findings.md": "findings.md",
}
SITE_TO_REPOSITORY = {name: source for source, name in PAGES.items()}
IMAGES = (".png", ".jpg", ".svg")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+)\)")
SHIM = "https://unpkg.com/iframe-worker/shim"  # what the theme loads where a page is opened from the disk; ours instead
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
DOCTEST = re.compile(r"(?:^>>> .*\n?)(?:^(?!\s*$).*\n?)*", re.MULTILINE)
log = logging.getLogger("mkdocs.hooks.documentation")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere, and the images in `results/`."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text(encoding="utf-8")))
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in IMAGES:
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the page's links for the site, outside of code."""
    name = page.file.src_uri
    source = SITE_TO_REPOSITORY.get(name, f"docs/{name}")

    def rewritten(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            log.warning("%s links to %r, which does not exist", source, path)
            return match[0]
        there = PAGES.get(path, path.removeprefix("docs/"))
        if files.get_file_from_path(there):
            link = posixpath.relpath(there, posixpath.dirname(name) or ".") + (f"#{anchor}" if anchor else "")
        elif config.repo_url:
            link = f"{config.repo_url.rstrip('/')}/blob/main/{path}"
        else:
            return match["text"]
        return f"{match['image']}[{match['text']}]({link})"

    parts = FENCE.split(markdown)  # every second one is code
    return "".join(part if n % 2 else LINK.sub(rewritten, part) for n, part in enumerate(parts))


def on_post_build(config: MkDocsConfig) -> None:
    """Let the pages load nothing from elsewhere."""
    site = Path(config.site_dir)
    for path in site.rglob("*.html"):
        up = "../" * (len(path.relative_to(site).parts) - 1)
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(SHIM, f"{up}assets/iframe-worker.js"), encoding="utf-8")


class Doctests(griffe.Extension):
    """Fences the examples in docstrings, which Markdown would take for quotations and links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence the examples of one object."""
        if obj.docstring:
            obj.docstring.value = DOCTEST.sub(lambda code: f"```pycon\n{code[0].rstrip()}\n```\n", obj.docstring.value)
