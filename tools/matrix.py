"""Builds every cell of families x schemes, verifies it, generates from it, and writes the table into the README.

    python -m tools.matrix [--families llama,qwen2] [--schemes q4f16_1]

About 3 s a cell on two cores. docs/measured/matrix.json keeps what was found; the README's table is made from it alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_build import architectures
from llm_build.config.choices import find_folders
from llm_build.planner.schemes.schemes import schemes_that_quantize
from tests.conftest import ROOT, Shell
from tests.matrix.checkpoints import FAMILIES, make

RECORD = ROOT / "docs" / "measured" / "matrix.json"
START, END = "<!-- matrix -->\n", "<!-- /matrix -->\n"
MARK = {"yes": "yes", "refused": "–"}


Cells = Mapping[str, Sequence[str]]  # the folder of a checkpoint -> schemes


def build(shell: Shell, cells: Cells) -> dict[tuple[str, str], str]:
    """(folder, scheme) -> "yes" when the artifact was built, verified and gave text, "refused" when the plan says no,
    else what failed. One sweep builds them all."""
    schemes = sorted({scheme for row in cells.values() for scheme in row})
    others = {source: [scheme for scheme in schemes if scheme not in row] for source, row in cells.items()}
    rules = [f"{{model.source:'{source}',quant:[{','.join(names)}]}}" for source, names in others.items() if names]
    words = ["model=auto", f"model.source={','.join(cells)}", f"quant={','.join(schemes)}"]
    words += [f"dist.path={shell.folder}/dist", *([f"sweep.exclude=[{','.join(rules)}]"] if rules else [])]
    built = shell.json("-m", *words, "-k", code=None)["recipes"]
    every = [(source, scheme) for source in cells for scheme in schemes if scheme in cells[source]]
    return {cell: _verdict(shell, cell, recipe) for cell, recipe in zip(every, built, strict=True)}


def _verdict(shell: Shell, cell: tuple[str, str], recipe: Mapping[str, Any]) -> str:
    if recipe["status"] == "unsupported":
        return "refused"
    failed = [step["name"] for step in recipe["steps"] if step["status"] == "failed"]
    return failed[0] if failed else text(shell, "model=auto", f"model.source={cell[0]}", f"quant={cell[1]}")


def text(shell: Shell, *words: str) -> str:
    said = shell.json("generate", "The function returns", *words, "--max-tokens", "8")["text"]
    return "yes" if said else "no text"


def table(found: dict[str, dict[str, str]]) -> str:
    """Markdown; a scheme that no family was tried with has no column."""
    schemes = sorted({scheme for cells in found.values() for scheme in cells})
    lines = [f"| model family | {' | '.join(schemes)} |", "| --- |" + " --- |" * len(schemes)]
    for family, cells in sorted(found.items()):
        lines.append(f"| {family} | {' | '.join(MARK.get(cells.get(s, ''), cells.get(s, '')) for s in schemes)} |")
    return "\n".join(lines) + "\n"


def write_readme(found: dict[str, dict[str, str]]) -> None:
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(START)
    readme.write_text(before + START + table(found) + END + rest.partition(END)[2])


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--families", default=",".join(f for f in FAMILIES if f in architectures.FAMILIES))
    options.add_argument("--schemes", default=",".join(schemes_that_quantize(find_folders())))
    given = options.parse_args()
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        shell = Shell(Path(name), Path(name) / "store")
        for family in given.families.split(","):
            source = str(make(family, Path(name) / family))
            cells = build(shell, {source: given.schemes.split(",")})
            found.setdefault(family, {}).update({scheme: verdict for (_, scheme), verdict in cells.items()})
            print(family, found[family], flush=True)
            RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    write_readme(found)


if __name__ == "__main__":
    main()
