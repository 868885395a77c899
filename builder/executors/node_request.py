"""What a node of a cluster gets of a step: the task, where its bytes are, what must be the same there and here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import llm_build
from llm_build.core.digest import digest_of_names, sha256_hex
from llm_build.core.filestore import FileStore
from llm_build.core.step_io import File
from llm_build.core.task import StepTask
from llm_build.remote.location import Location

PACKAGE = Path(llm_build.__file__).parent
# What a step's result depends on besides our own code (the tools that graph.py names).
_TOOLS = ("apache-tvm", "apache-tvm-ffi", "torch", "transformers", "tokenizers", "safetensors", "numpy", "jinja2")


class NodeRequest(NamedTuple):
    """One step, as the coordinator sends it: its paths are those of the coordinator's machine."""

    task: StepTask
    root: Path  # of the coordinator's store
    package: Path  # where its llm-build is installed
    remote: Location | None  # None: every node sees ``root``
    node_store: Callable[[], Path]  # asked on the node: where its own store is
    blobs: Mapping[str, int]  # {digest: bytes} of all that the step reads from the store
    outside: Mapping[str, tuple[int, int]]  # {path: (bytes, mtime_ns)} of what it reads from elsewhere
    code: str
    tools: Mapping[str, str]


def request_for(
    task: StepTask, store: FileStore, remote: Location | None, node_store: Callable[[], Path]
) -> NodeRequest:
    """The task with all that a node must know of this machine. ``node_store``: a function of a module, which is sent by
    its name."""
    blobs, outside = {}, {}
    for path in _paths_of(task):
        status = os.stat(path)
        if path.is_relative_to(store.root / "blobs"):
            blobs[f"blake3:{path.name}"] = status.st_size
        else:
            outside[str(path)] = (status.st_size, status.st_mtime_ns)
    return NodeRequest(task, store.root, PACKAGE, remote, node_store, blobs, outside, code_digest(), tool_versions())


def _paths_of(task: StepTask) -> set[Path]:
    """Every file that the step reads: its inputs, and what its context names."""
    paths = {Path(value) for value in task.context.values() if isinstance(value, str) and os.path.isfile(value)}
    for files in task.inputs.values():
        paths |= {files.path} if isinstance(files, File) else {file.path for file in files.values()}
    return paths


@cache
def code_digest() -> str:
    """Of llm-build's own files, less configuration, which a wheel has elsewhere, and the demo's tensors."""
    digests = {}
    for path in PACKAGE.rglob("*"):
        name = path.relative_to(PACKAGE)
        if path.is_file() and path.suffix not in (".pyc", ".safetensors") and name.parts[0] not in ("conf", "recipes"):
            digests[name.as_posix()] = sha256_hex(path.read_bytes())
    return digest_of_names(digests)


@cache
def tool_versions() -> Mapping[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = version(tool)
        except PackageNotFoundError:
            versions[tool] = "absent"
    return versions
