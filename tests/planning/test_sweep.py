"""A sweep goes on without the cells that cannot be built, and says which they are."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from llm_build.app.merge import merge
from llm_build.app.request import BuildRequest
from llm_build.config import compose
from llm_build.config.choices import Composed, find_folders
from llm_build.core.errors import Unsupported, UserError
from llm_build.report import document
from llm_build.targets import link, tools
from tests.conftest import ROOT

GOOD, BAD = ["verify=off"], ["quant=e4m3_e4m3_f16", "target=a6000", "verify=off"]


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))


@cache
def composed(*overrides: str) -> Composed:
    return compose.compose(overrides, None)


def merged(*cells: list[str]) -> BuildRequest:
    return merge([composed(*cell) for cell in cells], find_folders())


def test_a_refused_cell_is_kept_beside_the_others():
    job = merged(BAD, GOOD, ["target=vulkan"])
    assert job.names == ("demo-e4m3_e4m3_f16-a6000", "demo-q4f16_1-cpu", "demo-q4f16_1-vulkan")
    assert [recipe.name for recipe in job.recipes] == ["demo-q4f16_1-cpu"]
    assert [goal.name for goal in job.plan.goals] == ["demo-q4f16_1-cpu"]
    whole = document.with_refused({"recipes": [{"name": "demo-q4f16_1-cpu"}]}, job.refused, job.outputs)
    assert [row["name"] for row in whole["recipes"]] == list(job.names)
    first = whole["recipes"][0]
    assert (first["status"], first["steps"]) == ("unsupported", [])
    assert "has no 8-bit float matrix instructions" in first["reason"]
    assert first["hint"] == "build quant=e4m3_f16 or quant=q0f16 or quant=q4f16_1"


def test_a_plain_build_is_refused_as_a_whole():
    with pytest.raises(Unsupported, match="has no 8-bit float matrix instructions"):
        merged(BAD)


def test_a_mistake_in_one_cell_stops_the_sweep():
    with pytest.raises(UserError, match="model=llama2 has no checkpoint"):
        merged(GOOD, ["model=llama2"])


def test_every_cell_may_be_refused():
    job = merged(BAD, ["target=vulkan"])
    assert (job.recipes, len(job.refused), dict(job.plan.steps)) == ((), 2, {})


CUDA_MISSING = (
    "target=a6000 needs a CUDA compiler, and no nvcc (with a g++) was found on the path, in /usr/local/cuda or from "
    "PyPI, and no NVRTC from PyPI; every other target builds without it"
)


def test_a_missing_tool_costs_only_the_cells_that_need_it(monkeypatch):
    monkeypatch.setattr(tools, "missing_tools", lambda *kinds: [tools.REQUIRED[0]] if "cuda" in kinds else [])
    with pytest.raises(Unsupported) as caught:
        merged(["target=a6000"])
    assert caught.value.message == CUDA_MISSING
    assert caught.value.hint == "install the CUDA toolkit 13 and g++, or: pip install 'llm-build[cuda]'"
    job = merged(GOOD, ["target=a6000"])
    assert {name: error.message for name, error in job.refused.items()} == {"demo-q4f16_1-a6000": CUDA_MISSING}
    assert {step.name for step in job.plan.steps.values()} == {
        "fetch", "convert", "shard", "quantize", "lower", "package"
    }  # fmt: skip


def test_a_missing_linker_too(monkeypatch):
    monkeypatch.setattr(tools, "missing_tools", lambda *kinds: [])
    monkeypatch.setattr(link, "find_linker", lambda triple="": None if "aarch64" in triple else ["/usr/bin/cc"])
    job = merged(GOOD, ["target=jetson-orin"])
    (error,) = job.refused.values()
    assert error.message.startswith("target=jetson-orin: no linker for aarch64-linux-gnu found")
    assert [recipe.name for recipe in job.recipes] == ["demo-q4f16_1-cpu"]


def test_tools_are_found_by_kind(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [tool.name for tool in tools.missing_tools("webgpu", "web_page")] == ["emscripten", "npm"]
    assert tools.missing_tools("cpu", "mlc") == []
    (tmp_path / "emcc").touch(0o755)
    assert [tool.name for tool in tools.missing_tools("webgpu", "web_page")] == ["npm"]


def test_the_ndk_is_where_androids_variables_say(monkeypatch, tmp_path):
    for variable in tools.NDK_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert (tools.find_ndk(), tools.ndk_version()) == (None, "")
    (tmp_path / "source.properties").write_text("Pkg.Desc = Android NDK\nPkg.Revision = 27.2.12479018\n")
    monkeypatch.setenv("ANDROID_NDK_ROOT", str(tmp_path))
    assert (tools.find_ndk(), tools.ndk_version()) == (tmp_path, "27.2.12479018")


def plan(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llm_build", "plan", "-m", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env={
        "PYTHONPATH": str(ROOT / "tools" / "path"), "LLM_BUILD_STORE": str(folder / "store"),
        "PATH": "/usr/bin:/bin:/usr/local/bin",
    })  # fmt: skip


def test_the_command_line_says_it_in_text_in_json_and_by_its_exit_code(tmp_path):
    done = plan(tmp_path, "target=vulkan,cpu", "verify=off")
    lines = done.stdout.splitlines()
    assert lines[:3] == ["vulkan  unsupported", "cpu     stale 6/6 steps", "2 cells: 1 stale, 1 unsupported"]
    assert lines[3].startswith("unsupported: target=vulkan: apache-tvm's wheel has no Vulkan")
    assert lines[4] == "  cells: demo-q4f16_1-vulkan"
    assert "6 of 6 steps to run:" in lines
    assert "  lower     never built" in lines
    assert lines[-2].startswith("memory of a run: 123.4 MB (demo-q4f16_1-cpu)")
    assert done.returncode == 2
    lines = plan(tmp_path, "target=vulkan,cpu", "verify=off", "--steps").stdout.splitlines()
    assert lines[0].startswith("demo-q4f16_1-vulkan: unsupported: target=vulkan: apache-tvm's wheel has no Vulkan")
    assert "demo-q4f16_1-cpu: 6 of 6 steps to run" in lines
    assert lines[-2].startswith("memory   123.4 MB: weights 2.5 MB, KV cache 8.4 MB (4 sequences of 1024 tokens)")
    done = plan(tmp_path, "target=vulkan,cpu", "verify=off", "--json", "--allow-unsupported")
    whole = json.loads(done.stdout)
    recipes = whole["recipes"]
    assert whole["matrix"]["axes"] == {"target": ["vulkan", "cpu"]}
    assert [(cell["target"], cell["status"]) for cell in whole["matrix"]["cells"]] == [
        ("vulkan", "unsupported"), ("cpu", "stale")
    ]  # fmt: skip
    assert [recipe["status"] for recipe in recipes] == ["unsupported", "stale"]
    assert recipes[1]["memory"] == {
        "weights": 2474496, "cache": 8421376, "activations": 16510976, "runtime": 96000000, "total": 123406848
    }  # fmt: skip
    assert done.returncode == 0
