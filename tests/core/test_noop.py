"""What it costs to find out that there is nothing to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from builder.core.filestore import open_store
from builder.core.run import run
from builder.executors.local import LocalExecutor, capacity
from tests.core import toy

ROOT = Path(__file__).parents[2]
HEAVY = {"asyncio", "subprocess", "multiprocessing", "blake3", "numpy", "tvm", "torch", "transformers", "hydra",
         "importlib.metadata", "concurrent.futures", "tempfile", "ray", "builder.core.reason"}  # fmt: skip

NOOP = """
import sys
from pathlib import Path
from builder.core.examine import examine
from builder.core.export import export
from builder.core.filestore import open_store
from builder.core.run import run
from builder.executors.local import LocalExecutor, capacity
from tests.core.toy import plan
store, plan = open_store(Path(sys.argv[1])), plan(Path(sys.argv[2]))
assert {verdict.status for verdict in examine(plan, store).values()} == {"hit"}
with LocalExecutor(store, capacity()) as executor:
    outcome = run(plan, store, executor, lambda event: None)
assert not export(outcome, "toy", store, Path(sys.argv[3]), {}).changed
print(*sys.modules)
"""


def test_a_no_op_imports_nothing_heavy_and_writes_nothing(tmp_path: Path) -> None:
    from builder.core.export import export

    store, source = open_store(tmp_path / "store"), toy.write_source(tmp_path / "source.bin")
    with LocalExecutor(store, capacity()) as executor:
        outcome = run(toy.plan(source), store, executor, lambda event: None)
    export(outcome, "toy", store, tmp_path / "dist", {})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    command = [sys.executable, "-c", NOOP, str(store.root), str(source), str(tmp_path / "dist")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not HEAVY & set(done.stdout.split())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.skipif(os.environ.get("LLM_BUILD_NO_TIMING") == "1", reason="timings switched off")
def test_a_thousand_steps_are_examined_in_150_ms_of_cpu() -> None:
    command = [sys.executable, "benchmarks/plan_steps.py", "1000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["steps"] == 1000
    assert found["examine_cpu_ms"] < 150
