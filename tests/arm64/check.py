"""Run on an arm64 what tests.arm64 built: ``python -m tests.arm64.check FOLDER``. Needs TVM's runtime and numpy.

Each cell goes through verify (all paths of the runtime, against transformers in float32), then 64 greedy tokens are
held against those of the x86-64 library of the same weights. FOLDER/results.json gets what was found.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from builder.core.errors import BuildError
from builder.runtime.engine import Engine
from builder.steps import verify
from tests.gpu.cells import GREEDY_TOKENS, TIE
from tests.gpu.check import PORTS, Facts, difference, files
from tests.gpu.speech import greedy


def check(cell: Path) -> dict[str, Any]:
    """What one cell does here; raises where it does it wrong."""
    params = json.loads((cell / "verify.json").read_text())
    with tempfile.TemporaryDirectory() as name:
        out = Facts(Path(name))
        verify.run(params, {port: files(cell / part) for port, part in PORTS.items()}, out)  # type: ignore[arg-type]
    engine = Engine.from_folder(cell / "artifact")
    assert engine.metadata["target"]["cpu"] == "arm64"
    expected = json.loads((cell / "cpu.json").read_text())
    ids, _ = greedy(engine, expected["prompt"], GREEDY_TOKENS)
    found = {**out.facts, **difference(ids, expected)}
    assert found["same"] == GREEDY_TOKENS or found["margin"] < TIE, found
    return found


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
