"""CUDA at plan time: names of architectures, where the compiler is looked for, what is checked without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from llm_build.app.buildable import drop_unbuildable
from llm_build.app.request import BuildRequest
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Target
from llm_build.core.errors import StepError, Unsupported, UserError
from llm_build.core.filestore import open_store
from llm_build.planner import resolve
from llm_build.planner.feasibility import platforms
from llm_build.planner.graph import graph
from llm_build.targets import cuda, tools


def test_architectures_are_named_once_oldest_first():
    assert cuda.resolve(["sm_90a", "sm_80", "sm_90a", "sm_100"]) == ("sm_80", "sm_90a", "sm_100")


@pytest.mark.parametrize(
    ("arch", "said"), [(["sm_61"], "'sm_61' is no arch.*host, or sm_75"), (["90"], "'90'"), ([], "empty")]
)
def test_what_is_no_architecture_is_refused(arch: list[str], said: str):
    with pytest.raises(UserError, match=said) as caught:
        cuda.resolve(arch)
    assert caught.value.hint.startswith("build target=")


def test_host_is_this_machines_gpus(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda, "detect", lambda: ("sm_86", "sm_90a"))
    assert cuda.resolve(["host"]) == ("sm_86", "sm_90a")
    monkeypatch.setattr(cuda, "detect", lambda: ())
    with pytest.raises(UserError, match="nvidia-smi finds no GPU"):
        cuda.resolve(["host"])


def program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_gpus_are_read_from_nvidia_smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program(tmp_path / "nvidia-smi", "#!/bin/sh\nprintf '9.0\\n8.6\\n9.0\\n'\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert cuda.detect() == ("sm_86", "sm_90a")


def test_the_compiler_is_looked_for_on_the_path_then_in_its_places_then_in_packages(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    on_path = program(tmp_path / "bin" / "nvcc", "#!/bin/sh\necho 'release 13.0, V13.0.88'\n")
    in_place = program(tmp_path / "cuda" / "bin" / "nvcc")
    in_package = program(tmp_path / "site" / "nvidia" / "cu13" / "bin" / "nvcc")
    for folder in (on_path.parent, tmp_path):
        program(folder / "g++")
    monkeypatch.setattr(cuda, "FOLDERS", (str(tmp_path / "cuda"),))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert cuda.find_compiler() == cuda.Compiler("nvcc", on_path, "PATH")
    assert cuda.identity() == "nvcc 13.0.88"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda.find_compiler() == cuda.Compiler("nvcc", in_place, str(tmp_path / "cuda"))
    monkeypatch.setattr(cuda, "FOLDERS", ())
    assert cuda.find_compiler() == cuda.Compiler("nvcc", in_package, "the Python package nvidia-cuda-nvcc")
    monkeypatch.setattr(sys, "path", [])
    assert cuda.identity() == "none"
    with pytest.raises(StepError, match=r"no CUDA compiler found") as caught:
        cuda.require_compiler()
    assert "llm-build[cuda]" in caught.value.hint


@pytest.fixture
def only_nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A Python path with the names of NVRTC and CUDA's headers; an nvcc without a C++ compiler."""
    cu13 = tmp_path / "site" / "nvidia" / "cu13"
    for name in ("lib/libnvrtc.so.13", "include/cuda_fp16.h", "include/cccl/cuda/std/type_traits"):
        program(cu13 / name)
    (tmp_path / "site" / "nvidia_cuda_nvrtc-13.5.37.dist-info").mkdir()
    program(tmp_path / "bin" / "nvcc")
    monkeypatch.setattr(cuda, "FOLDERS", ())
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    return cu13


def test_nvrtc_is_the_compiler_where_nvcc_has_no_host_compiler(only_nvrtc: Path, monkeypatch: pytest.MonkeyPatch):
    found = cuda.find_compiler()
    assert found is not None
    assert (found.name, found.program) == ("NVRTC", only_nvrtc / "lib/libnvrtc.so.13")
    assert found.includes == (only_nvrtc / "include", only_nvrtc / "include" / "cccl")
    assert cuda.identity() == "NVRTC 13.5.37"
    assert [tool.name for tool in tools.missing_tools("cuda")] == []
    monkeypatch.setenv("NVCC_CCBIN", "clang++")
    assert cuda.require_compiler().name == "nvcc"


def test_nvrtc_without_cudas_headers_is_no_compiler(only_nvrtc: Path):
    (only_nvrtc / "include" / "cuda_fp16.h").unlink()
    assert cuda.find_compiler() is None


def test_nvrtc_takes_one_architecture_where_nothing_joins_several(only_nvrtc: Path):
    drop_unbuildable(request("target=h100"))
    with pytest.raises(Unsupported, match=r"needs fatbinary, and NVRTC, .* one architecture at a time") as caught:
        drop_unbuildable(request("target=cuda"))
    assert caught.value.hint.startswith("build target=h100 (or target.arch=[sm_90a]")
    program(only_nvrtc / "bin" / "fatbinary")
    drop_unbuildable(request("target=cuda"))


def test_without_any_compiler_that_is_what_is_said(only_nvrtc: Path):
    (only_nvrtc / "lib" / "libnvrtc.so.13").unlink()
    with pytest.raises(Unsupported, match="target=cuda needs a CUDA compiler"):
        drop_unbuildable(request("target=cuda"))


def test_a_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    program(tmp_path / "g++")
    program(tmp_path / "nvcc", "#!/bin/sh\necho 'kernels.cu(3): error: no' >&2\nexit 2\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(StepError, match=r"could not compile the kernels for sm_80: kernels.cu\(3\): error: no"):
        cuda.compile_kernels("", ["sm_80"])


def request(*words: str) -> BuildRequest:
    """Planned, and nothing asked of this machine yet."""
    one = recipe(*words)
    return BuildRequest((one,), graph.build_plan([one]), open_store(Path("none")), Path("dist"), (one.name,), {})


def recipe(*words: str) -> resolve.Recipe:
    return resolve.resolve(compose.compose(list(words), None), find_folders())


@pytest.mark.parametrize("here", [True, False])
def test_what_cannot_run_here_is_not_called_verified(here: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cuda, "runs_here", lambda: here)
    plan = graph.build_plan([recipe("target=h100")])
    last = next(step for step in plan.steps.values() if step.validation)
    assert last.name == ("verify" if here else "verify.weights")
    assert {"package", "dequantized"} <= set(last.inputs), "the tokenizer is compared in both"
    assert ("apache-tvm" in last.tools) is here


def test_the_library_knows_its_compiler_and_no_processor():
    plan = graph.build_plan([recipe("target=cuda", "target.arch=[sm_90a,sm_80]")])
    lower = next(step for step in plan.steps.values() if step.name == "lower")
    assert lower.params["compiler"] == cuda.identity()
    assert lower.params["target"]["arch"] == ("sm_80", "sm_90a")
    assert lower.params["target"]["cpu"] == ""


def test_only_cpus_and_nvidia_gpus_run_here():
    assert platforms.runs_here(Target(cpu="x86-64-v2"))
    assert not platforms.runs_here(Target(kind="metal"))


def test_a_cluster_places_lower_where_a_cuda_compiler_is():
    plan = graph.build_plan([resolve.resolve(compose.compose(["target=h100"], None), find_folders())])
    wanted = {step.name: dict(step.resources.custom) for step in plan.steps.values()}
    assert wanted["lower"] == {"nvcc": 0.001}
    assert {name for name, custom in wanted.items() if custom} == {"lower"}
