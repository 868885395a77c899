"""Every family in every scheme on 2 and 4 ranks of this CPU, held against one rank, and the table in
docs/guides/gpus.md.

    python -m tools.ranks [--families llama,qwen2] [--schemes q0f32] [--ranks 2,4]

About 10 s a cell on two cores. docs/measured/ranks.json keeps what was found.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from llm_build.core.errors import BuildError
from llm_build.runtime.ranks import RankedModel
from llm_build.targets.tvm_import import import_tvm
from tests.conftest import ROOT

import_tvm()  # with the compiler, before anything loads only its runtime

from tests.ranks import cells  # noqa: E402

RECORD, PAGE = ROOT / "docs" / "measured" / "ranks.json", ROOT / "docs" / "guides" / "gpus.md"
START, END = "<!-- table -->\n", "<!-- /table -->\n"


def row(folder: Path, family: str, scheme: str, groups: dict[int, RankedModel]) -> dict[str, float]:
    """Ranks -> the largest difference from one rank's logits, in units of their spread."""
    built = cells.build(folder / "one", family, scheme, 1)
    found = {}
    for count, group in groups.items():
        many = cells.several(built, folder / str(count), scheme, count, group)
        found[str(count)] = cells.difference(built.engine(), many)
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    counts = sorted({count for cells_ in found.values() for count in cells_})
    lines = [f"| family, scheme | {' | '.join(f'{count} ranks' for count in counts)} |"]
    lines.append("| --- |" + " --- |" * len(counts))
    for name, row_ in sorted(found.items()):
        lines.append(f"| {name} | {' | '.join(f'{row_[count]:.1e}' if count in row_ else '' for count in counts)} |")
    return "\n".join(lines) + "\n"


def record(found: dict[str, dict[str, float]]) -> None:
    RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    before, _, rest = PAGE.read_text().partition(START)
    PAGE.write_text(before + START + table(found) + END + rest.partition(END)[2])


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--families", default=",".join(cells.FAMILIES))
    options.add_argument("--schemes", default=",".join(cells.SCHEMES))
    options.add_argument("--ranks", default="2,4")
    given = options.parse_args()
    found: dict[str, dict[str, float]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        groups = {count: cells.processes_of(count, Path(name)) for count in map(int, given.ranks.split(","))}
        for family in given.families.split(","):
            for scheme in given.schemes.split(","):
                cell = f"{family} {scheme}"
                try:
                    found[cell] = row(Path(name, cell), family, scheme, groups)
                except BuildError as error:
                    print(cell, error)
                    return 1
                wrong += [cell] if max(found[cell].values()) > cells.ROUNDING else []
                print(cell, found[cell], "WRONG" if cell in wrong else "", flush=True)
                record(found)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
