"""Three families by four schemes by three targets in one sweep: how often each step runs, and what it costs beside
the steps alone.

    python -m tools.sweep [--families llama,gpt_neox,qwen3] [--schemes ...] [--targets ...]

About 36 times 3 s of CPU. docs/guides/sweeps.md has what it recorded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.conftest import Shell
from tests.matrix.checkpoints import make

FAMILIES, SCHEMES, TARGETS = "llama,gpt_neox,qwen3", "q0f16,q4f16_1,q8f16_1,q4f32_1", "cpu,android,ios"


def runs(steps: dict[str, float]) -> Counter[str]:
    """How often each step ran, by the ids of the steps that did; the items of a fan-out are one."""
    return Counter(id_.rpartition("-")[0] for id_ in {id_.partition("[")[0] for id_ in steps})


def measured(shell: Shell, result: Path, words: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "tools.sweep.measured", str(result), *words]
    subprocess.run(command, cwd=shell.folder, env=shell.environment(), check=True)
    found: dict[str, float] = json.loads(result.read_text())
    return found


def main() -> None:
    options = argparse.ArgumentParser()
    for name, default in (("families", FAMILIES), ("schemes", SCHEMES), ("targets", TARGETS)):
        options.add_argument(f"--{name}", default=default)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "conf" / "model").mkdir(parents=True)
        for family in given.families.split(","):
            make(family, folder / family)
            (folder / "conf" / "model" / f"tiny_{family}.yaml").write_text(f"source: {folder / family}\n")
        models = ",".join(f"tiny_{family}" for family in given.families.split(","))
        words = ["-m", f"model={models}", f"quant={given.schemes}", f"target={given.targets}"]
        shell = Shell(folder, folder / "store")
        start = time.perf_counter()
        first = measured(shell, folder / "first.json", words)
        alone = sum(first["steps"].values())
        print(f"{time.perf_counter() - start:.0f} s; ran: {dict(runs(first['steps']))}")
        print(f"CPU {first['total']:.1f} s, of its steps {alone:.1f} s: {first['total'] / alone:.3f}")
        again = measured(shell, folder / "again.json", words)
        print(f"again: {len(again['steps'])} steps ran, CPU {again['total']:.2f} s")


if __name__ == "__main__":
    main()
