"""The habits of the house, held by tools: format, lint, types, docstrings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT

FOLDERS = ("builder", "tests", "benchmarks", "tools", "training")


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", *FOLDERS],
        ["ruff", "check", *FOLDERS],
        ["mypy", "--no-error-summary"],
        ["tools.docstring_first", *FOLDERS],
    ],
    ids=["format", "lint", "types", "docstring first"],
)
def test_style(command: list[str]):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
