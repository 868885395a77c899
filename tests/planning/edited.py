"""A copy of the sources that a test may edit, over a store whose results are made up: what an edit makes stale."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT, Shell

FILL = """
import sys
from benchmarks.synthetic import MadeUp
from llm_build.app.merge import request_of
from llm_build.cli.arguments import parse
from llm_build.core.run import run
for words in sys.argv[1:]:
    request = request_of(parse(["plan", *words.split()]).build)
    outcome = run(request.plan, request.store, MadeUp(request.plan, request.store), lambda event: None)
    assert not outcome.failed, next(done for done in outcome.steps.values() if done.error)
"""


@dataclass(frozen=True)
class Copy(Shell):
    root: Path

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.root)}

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the first ``old`` of a file of the copy."""
        file = self.root / path
        assert old in file.read_text(), f"{path} has no {old!r}"
        file.write_text(file.read_text().replace(old, new, 1))

    def add(self, path: str, line: str) -> None:
        """Put a line at the end of a file of the copy."""
        with open(self.root / path, "a") as file:
            file.write(f"\n{line}\n")

    def stale(self, *words: str) -> dict[str, str]:
        """{step: reason} of what `build plan WORDS` would run, without what only waits for that."""
        (recipe,) = self.json("plan", *words)["recipes"]
        return {step["name"]: step["reason"] for step in recipe["steps"] if step["status"] == "stale"}


def copy_of_sources(folder: Path, *recipes: str) -> Copy:
    """``recipes``: the words of each build whose results the store has."""
    root = folder / "source"
    for name in ("builder", "benchmarks", "conf", "recipes"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "builder").rename(root / "llm_build")
    (folder / "work").mkdir()
    copy = Copy(folder / "work", folder / "store", root)
    fill = [sys.executable, "-c", FILL, *recipes]
    subprocess.run(fill, cwd=copy.folder, env=copy.environment(), check=True, timeout=300)
    return copy
