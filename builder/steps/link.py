"""link: a model's objects and TVM's runtime, as one WebAssembly library."""

from __future__ import annotations

import json
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.steps.ports import group, one
from llm_build.targets import webgpu
from llm_build.targets.planned_tools import check_planned_tools


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """params {"emscripten": its version} (identity only) -> library.wasm.

    inputs: {"objects": library.tar, "runtime": {"<name>.o"}, "metadata": metadata.json}.
    """
    check_planned_tools(params)
    parts = group(inputs["runtime"])
    metadata = json.loads(one(inputs["metadata"]).path.read_bytes())
    with tempfile.TemporaryDirectory(prefix="llm-build-") as folder, tarfile.open(one(inputs["objects"]).path) as tar:
        objects = unpacked(tar, Path(folder))
        memory_bytes = webgpu.initial_memory(metadata, sum(path.stat().st_size for path in objects))
        runtime = [parts[f"{name}.o"].path for name in webgpu.RUNTIME]
        webgpu.link(objects, runtime, out.path("library.wasm"), memory_bytes)
    out.fact("initial_memory_bytes", memory_bytes)


def unpacked(tar: tarfile.TarFile, folder: Path) -> list[Path]:
    """The archive's files, all in ``folder`` itself whatever their names say. (Older releases of Python 3.10 and 3.11
    have no filter that extracts safely.)"""
    paths = []
    for member in tar:
        content = tar.extractfile(member)
        if content is not None:
            paths.append(folder / Path(member.name).name)
            paths[-1].write_bytes(content.read())
    return paths
