"""WebGPU: kernels are shipped as WGSL, which the browser compiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_build.lowering.backends import gpu
from llm_build.lowering.backends.gpu import elementwise, generate, metadata, passes
from llm_build.lowering.machine import Machine

__all__ = ["elementwise", "generate", "machine_of", "metadata", "passes"]


def machine_of(target: Mapping[str, Any], prefix: str = "") -> Machine:
    """WebLLM looks for symbols without a prefix; a page has one library."""
    return gpu.machine_of(target)
