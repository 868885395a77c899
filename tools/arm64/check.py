"""Run on an arm64 what tools.arm64 built: ``python -m tools.arm64.check FOLDER``. Needs TVM's runtime and numpy.

Each cell goes through verify (all paths of the runtime, against transformers in float32), then 64 greedy tokens are
held against those of the x86-64 library of the same weights. FOLDER/results.json gets what was found.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

from llm_build.core.errors import BuildError
from tools.gpu.check import compared


def check(cell: Path) -> dict[str, Any]:
    """What one cell does here; raises where it does it wrong."""
    return compared(cell, "cpu", "arm64")[1]


def main() -> int:
    assert platform.machine() == "aarch64", f"this is {platform.machine()}"
    folder, cells = Path(sys.argv[1]), dict[str, Any]()
    for cell in sorted(path for path in folder.iterdir() if (path / "artifact").is_dir()):
        try:
            cells[cell.name] = check(cell)
        except (AssertionError, BuildError) as error:
            cells[cell.name] = {"failed": str(error)}
        print(cell.name, json.dumps(cells[cell.name]), flush=True)
    (folder / "results.json").write_text(json.dumps(cells, indent=1, sort_keys=True) + "\n")
    return 1 if any("failed" in found for found in cells.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
