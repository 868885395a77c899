"""OpenCL: kernels are shipped as source, which the device's driver compiles."""

from __future__ import annotations

from llm_build.lowering.backends.gpu import elementwise, generate, machine_of, metadata, passes

__all__ = ["elementwise", "generate", "machine_of", "metadata", "passes"]
