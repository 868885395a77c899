"""Import TVM quickly: without torch, which its FFI loads only to be able to exchange tensors with it (1.7 s here)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

_RUNTIME_ONLY = "TVM_USE_RUNTIME_LIB"


def import_tvm(runtime_only: bool = False) -> Any:
    """The ``tvm`` module; ``runtime_only``: without the compiler, unless it is loaded already.

    A process has one TVM for good. Where it is the runtime alone, a step that compiles must get another process: that
    is Step.loads."""
    if "tvm" not in sys.modules:
        with _without("torch"), _environment(_RUNTIME_ONLY, "1" if runtime_only else None):
            import_module("tvm")
    tvm = sys.modules["tvm"]
    assert runtime_only or hasattr(tvm, "relax"), "this process has loaded TVM's runtime without the compiler"
    return tvm


@contextmanager
def _without(name: str) -> Iterator[None]:
    """Imports of ``name`` fail, as if it were not installed; one that is loaded already stays."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """The variable has this value, or none, whatever it is outside."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before
