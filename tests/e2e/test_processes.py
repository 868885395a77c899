"""Ctrl-C, two builds at once, edited code: what happens between processes and between versions."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, Shell, bytes_of
from tests.e2e.test_main_job import change_tensor, copy_demo

NAME = "demo-q4f16_1-cpu"


@dataclasses.dataclass(frozen=True)
class Copy(Shell):
    """A shell that runs a copy of the source tree."""

    root: Path

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "PYTHONPATH": str(self.root)}


@pytest.fixture
def copy(demo: Shell, tmp_path: Path) -> Copy:
    """A copy of llm-build over the demo's store: same code, same keys."""
    root = tmp_path / "source"
    for folder in ("builder", "conf", "recipes"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "builder").rename(root / "llm_build")
    (tmp_path / "work").mkdir()
    return Copy(tmp_path / "work", demo.store, root)


def start(shell: Shell, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llm_build", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=shell.folder, env=shell.environment(), **pipes)


def test_moving_the_program_changes_nothing_but_the_demos_files(copy: Copy):
    assert copy.ran("build") == {"fetch"}
    assert copy.ran("build") == set()


def test_a_statement_in_a_module_of_lower_lowers_again_and_stops_there(copy: Copy):
    copy.run("build")
    module = copy.root / "llm_build" / "models" / "gated_mlp.py"
    module.write_text(module.read_text() + "\nONE_MORE = 1\n")
    (recipe,) = copy.json("build")["recipes"]
    ran = {s["name"]: s["reason"] for s in recipe["steps"] if s["status"] == "ran"}
    assert ran == {"lower": "llm_build/models/gated_mlp.py changed"}


def test_code_that_a_step_does_not_reach_leaves_it_fresh(copy: Copy):
    copy.run("build")
    for name in ("runtime/generate.py", "report/table.py", "planner/graph/graph.py"):
        module = copy.root / "llm_build" / name
        module.write_text(module.read_text() + "\nONE_MORE = 1\n")
    assert copy.ran("build") == set()


def test_first_ctrl_c_stops_keeps_what_is_done_and_the_next_build_goes_on(shell: Shell, demo: Shell):
    process = start(shell, "build", "--json")
    for _ in range(400):
        if list((shell.store / "records").rglob("*.json")) if (shell.store / "records").is_dir() else []:
            break
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, out + err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert json.loads(out)["error"]["message"].startswith("interrupted")
    assert not (shell.folder / "dist" / NAME).exists()
    statuses = shell.statuses("build")
    assert statuses["fetch"] == "fresh"
    assert statuses["lower"] == "ran"
    assert bytes_of(shell.folder / "dist" / NAME) == bytes_of(demo.folder / "dist" / NAME)


def test_two_builds_at_once_run_each_step_once(shell: Shell):
    both = [start(shell, "build", "--json") for _ in range(2)]
    outputs = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    steps = [{s["name"]: s["status"] for s in json.loads(out)["recipes"][0]["steps"]} for out in outputs]
    for name in steps[0]:
        assert sorted((steps[0][name], steps[1][name])) == ["fresh", "ran"], name
    assert shell.ran("build") == set()


def test_keep_going_builds_what_does_not_depend_on_a_failure(shell: Shell, tmp_path: Path):
    good, bad = copy_demo(tmp_path / "good"), copy_demo(tmp_path / "bad")
    change_tensor(bad, "model.layers.1.mlp.down_proj.weight", lambda w: w.__setitem__(0, np.float16("inf")))
    words = ("-m", "model=llama", f"model.source={bad},{good}", "verify=off", "-k")
    failed, built = shell.json(*words, code=2)["recipes"]
    assert (failed["status"], built["status"]) == ("failed", "ran")
    assert {s["name"]: s["status"] for s in failed["steps"]}["package"] == "skipped"
    assert Path(built["output"], "build.json").is_file()
    assert not Path(failed["output"]).exists()


def test_tab_completion_offers_choices(demo: Shell):
    environment = {**demo.environment(), "COMP_LINE": "build plan quant=q4", "COMP_POINT": "19"}
    command = [sys.executable, "-m", "llm_build", "-sc", "query=bash"]
    done = subprocess.run(command, cwd=demo.folder, env=environment, capture_output=True, text=True, check=True)
    assert {"quant=q4f16_1", "quant=q4f32_1"} <= set(done.stdout.split())


def test_output_into_a_closed_pipe_is_no_error(demo: Shell):
    line = f"{sys.executable} -m llm_build why lower | head -1"
    done = subprocess.run(
        line, shell=True, cwd=demo.folder, env=demo.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("lower: ")
    assert done.stderr == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(demo: Shell, tmp_path: Path):
    tmp_path.chmod(0o500)
    assert "no permission" in demo.run(f"dist.path={tmp_path / 'd'}", code=2).stderr
