"""What holds for every page: links lead somewhere, named files exist, lines are short, and the README is one page."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.pages import PAGES, anchors, files_named, links, name

WIDTH, README_LINES = 100, 200
WRAPPED = [page for page in PAGES if name(page) not in ("builder/demo/README.md", "training/README.md")]
MADE = ("dist/", "recipes/phone.lock.yaml", "recipes/NAME.lock.yaml", "recipes/*.lock.yaml")  # by a build, not here


def expanded(path: str) -> list[str]:
    """a/{b,c}/d.py -> a/b/d.py, a/c/d.py"""
    parts = [part.strip("{}").split(",") for part in re.split(r"(\{[^}]*\})", path)]
    return ["".join(choice) for choice in product(*parts)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path):
    broken = []
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if target.startswith("reference/python/") and page.parent.name == "docs":
            continue  # made with the site
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=name)
def test_files_that_are_named_exist(page: Path):
    missing = [
        path
        for named in files_named(page)
        if not named.startswith(MADE) and "<" not in named and "NNNN" not in named and "NAME" not in named
        for path in expanded(named)
        if not any(ROOT.glob(path.replace("[", "[[]"))) and not (ROOT / path).exists()
    ]
    assert not missing


@pytest.mark.parametrize("page", WRAPPED, ids=name)
def test_lines_are_wrapped(page: Path):
    long = [
        line for line in page.read_text("utf-8").splitlines() if len(line) > WIDTH and not line.lstrip().startswith("|")
    ]
    assert not long


def test_the_readme_is_one_page():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < README_LINES


def test_the_index_lists_every_page():
    index = ROOT / "docs" / "index.md"
    listed = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    decisions = {(page.parent / link).resolve() for page in [ROOT / "docs/decisions/index.md"] for link in links(page)}
    assert set((ROOT / "docs").rglob("*.md")) - {index} <= listed | decisions
