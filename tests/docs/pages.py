"""The Markdown files of the repository, read as a person who clicks reads them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

LINK = re.compile(r"(?<!\\)\[(?:[^\]`]|`[^`]*`)*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = (
    "builder",
    "conf",
    "recipes",
    "docs",
    "tests",
    "tools",
    "benchmarks",
    "training",
    ".github",
    ".ci",
    "LICENSES",
)
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "training").glob("*.md"),
        ROOT / "builder/demo/README.md",
    ]
)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """Without blocks of code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.sub(r"^(?: {4}.*\n)+", "\n", text, flags=re.M)


def links(page: Path) -> Iterator[str]:
    for match in LINK.finditer(prose(page.read_text("utf-8"))):
        yield match[1]


def anchors(page: Path) -> set[str]:
    """The ids of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page.read_text("utf-8")), flags=re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "") for title in titles]
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in plain}


def files_named(page: Path) -> Iterator[str]:
    """Files and folders of this repository that a page names in code, such as `builder/core/plan.py`."""
    for word in CODE.findall(prose(page.read_text("utf-8"))):
        path = word.split("#")[0].removeprefix("./").rstrip("/")
        if path.split("/")[0] in FOLDERS and "/" in path and re.fullmatch(r"[\w./{},*\[\]-]+", path):
            yield path
