"""CUDA on the real thing. LLM_BUILD_GPU names what tools.gpu.prepare built elsewhere; without it, it is built here.

A machine without a GPU skips all of it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_build.targets import cuda
from tools.gpu.cells import CELLS

pytestmark = pytest.mark.skipif(not cuda.runs_here(), reason="no NVIDIA driver on this machine")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if given := os.environ.get("LLM_BUILD_GPU"):
        return Path(given)
    from tools.gpu.prepare import prepare

    folder = tmp_path_factory.mktemp("gpu")
    prepare(folder, list(CELLS), "cuda", 256)
    return folder


@pytest.mark.parametrize("cell", CELLS)
def test_a_library_built_elsewhere(cell: str, built: Path):
    from tools.gpu.check import check

    check(built / cell)


def test_attention_of_many_rows(tmp_path: Path):
    """Where there is a compiler beside the GPU."""
    if cuda.find_compiler() is None or cuda.find_fatbinary() is None:
        pytest.skip("no CUDA compiler for several architectures")
    if not set(cuda.detect()) <= {"sm_90a"}:
        pytest.skip("the kernels of one of its libraries are for sm_90a alone")
    from tools.gpu import attention

    attention.prepare(tmp_path)
    attention.check(tmp_path)
