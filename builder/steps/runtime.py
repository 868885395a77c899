"""runtime.wasm: TVM's runtime for browsers, compiled once per version of the wheels and of emscripten."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.targets import webgpu
from llm_build.targets.planned_tools import check_planned_tools

_ONCE = "once, some 2 CPU minutes"  # for a version of TVM and of emscripten; nearly all of it is the first file


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """params {"emscripten": its version, "headers": their digest} (identity only) -> <name>.o of each of its parts."""
    check_planned_tools(params)
    done = 0

    def starts(file: str) -> None:
        nonlocal done
        out.progress(done, len(webgpu.RUNTIME), "files", f"{_ONCE}: {file}")
        done += 1

    with tempfile.TemporaryDirectory(prefix="llm-build-") as folder:
        webgpu.compile_runtime({name: out.path(f"{name}.o") for name in webgpu.RUNTIME}, Path(folder) / "tvm", starts)
