"""The trails of CONTRIBUTING.md name as many files as they count, and each exists; every tool has its line."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
TRAIL = re.compile(r"^### ([^\n]*): (\d+) files?\n(.*?)(?=^##)", re.M | re.S)
FIRST_FILE = re.compile(r"^\d+\. `([\w./-]+)`", re.M)
TRAILS = {title: (int(count), FIRST_FILE.findall(text)) for title, count, text in TRAIL.findall(TEXT)}
NO_COMMANDS = {"__init__", "site_hooks", "coverage_of_workers", "cells", "sampling", "shapes", "speech"}  # of tools


@pytest.mark.parametrize("title", TRAILS)
def test_a_trail_has_the_files_that_it_counts(title: str):
    count, files = TRAILS[title]
    assert len(files) == count
    assert all((ROOT / file).is_file() for file in files)


def test_there_is_a_trail_for_each_job_of_a_newcomer():
    assert [count for count, _ in TRAILS.values()] == [2, 3, 1, 3, 3]


def test_every_tool_has_a_line():
    commands = {
        "tools." + ".".join(file.relative_to(ROOT / "tools").with_suffix("").parts)
        for file in (ROOT / "tools").rglob("*.py")
        if file.stem not in NO_COMMANDS and not (file.parent / "__main__.py").exists()
    }
    commands |= {f"tools.{file.parent.name}" for file in (ROOT / "tools").rglob("__main__.py")}
    assert not {command for command in commands if f"`python -m {command}`" not in TEXT}
