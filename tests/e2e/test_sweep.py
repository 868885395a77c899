"""A sweep with a cell that cannot be built leaves the others complete."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Shell
from tests.e2e.test_main_job import copy_demo


def test_the_other_cells_are_built(demo: Shell):
    whole = demo.json("-m", "target=vulkan,cpu", "dist.path=swept", code=2)
    assert [(recipe["name"], recipe["status"]) for recipe in whole["recipes"]] == [
        ("demo-q4f16_1-vulkan", "unsupported"),
        ("demo-q4f16_1-cpu", "fresh"),
    ]
    folders = sorted(folder.name for folder in (demo.folder / "swept").iterdir() if not folder.name.startswith("."))
    assert folders == ["demo-q4f16_1-cpu"]
    done = demo.run("-m", "target=vulkan,cpu", "dist.path=swept", "--allow-unsupported")
    lines = done.stdout.splitlines()
    assert lines[0] == "vulkan  unsupported"
    assert lines[1].startswith("cpu     fresh 3.")
    assert " MB 4.51 bits KL 0.008" in lines[1]
    assert " top-1 9" in lines[1]
    assert lines[2] == "2 cells: 1 fresh, 1 unsupported"
    assert lines[3].startswith("KL: ")
    assert any(line.startswith("unsupported: target=vulkan: apache-tvm's wheel has no Vulkan") for line in lines[4:])
    assert lines[-1] == "all 9 steps fresh; a folder for each cell in swept/"
    assert not done.stderr


def test_a_sweep_of_nothing_but_refusals_is_one(demo: Shell):
    done = demo.run("-m", "target=vulkan,rocm", "dist.path=nothing", code=2)
    assert done.stdout.splitlines()[2] == "2 cells: 2 unsupported"
    assert done.stdout.count("unsupported: ") == 2
    assert not (demo.folder / "nothing").exists()


@pytest.fixture
def checkpoints(tmp_path: Path) -> list[str]:
    """A sweep over two checkpoints and two sizes of files; a weight file of the first checkpoint ends early."""
    good = copy_demo(tmp_path / "good")
    bad = Path(shutil.copytree(good, tmp_path / "bad"))
    shard = bad / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100_000])
    return [
        "-m", "model=llama", f"model.source={bad},{good}", "quant.max_shard_bytes=400000,33554432",
        "target=cpu,vulkan", "verify=off", f"dist.path={tmp_path / 'dist'}",
    ]  # fmt: skip


def test_a_failure_that_cells_share_is_told_once_and_with_k_the_others_are_built(demo: Shell, checkpoints, tmp_path):
    bad = tmp_path / "bad"
    done = demo.run(*checkpoints, code=2)
    assert "8 cells: 2 failed, 2 skipped, 4 unsupported" in done.stdout
    assert "2 cells skipped because others failed: -k builds what does not depend on those" in done.stdout
    assert done.stderr.splitlines()[:2] == [
        "error: fetch: model-00001-of-00002.safetensors: truncated: 100000 bytes; its header describes 4395008",
        f"  cells: target=cpu model.source={bad} (2 of 8)",
    ]
    assert done.stderr.count("error: ") == 1
    assert not (tmp_path / "dist").exists()
    whole = demo.json(*checkpoints, "-k", "--allow-unsupported", code=2)
    cells = whole["matrix"]["cells"]
    assert [cell["status"] for cell in cells if cell["target"] == "cpu"] == ["failed", "failed", "ran", "ran"]
    assert len(list((tmp_path / "dist").iterdir())) == 2
    again = demo.run(*checkpoints, "-k", "-q", code=2)
    assert "8 cells: 2 failed, 2 fresh, 4 unsupported" in again.stdout


def test_a_step_that_fails_makes_the_exit_code_1_and_names_its_cell(demo: Shell, tmp_path: Path):
    words = ["-m", "verify.kl=0.1,0.001", f"dist.path={tmp_path / 'dist'}"]
    done = demo.run(*words, "-k", code=1)
    assert "2 cells: 1 failed, 1 " in done.stdout
    assert done.stderr.splitlines()[1] == "  cells: demo-q4f16_1-cpu-kl=0.001"
