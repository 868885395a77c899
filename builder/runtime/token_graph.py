"""The kernels of one decoded token as one CUDA graph: launched one by one they take a GPU 4 to 8% longer.

A graph holds what the KV cache passes to its kernels by value: how many pages the sequence has, and where its tables
lie. That changes with each page of tokens. So the first token of a page is run kernel by kernel, and while the GPU
works on it the same calls are captured, without being run, for the other tokens of that page. What they take of TVM's
memory pool is only used while they run; their first and last tensors are kept. Functions are those of CUDA's runtime:
https://docs.nvidia.com/cuda/cuda-runtime-api, "Graph Management" and "Stream Management".
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Hashable
from typing import Any

from llm_build.runtime.device import Device
from llm_build.targets.cuda_runtime import RUNTIME, check_cuda, open_linked_library

_NON_BLOCKING = 1  # cudaStreamNonBlocking
_RELAXED = 2  # cudaStreamCaptureModeRelaxed: TVM may allocate memory while it is captured
_INFO_BYTES = 256  # more than a cudaGraphExecUpdateResultInfo
Pointer = ctypes.c_void_p
Outputs = tuple[Any, ...]


class TokenGraph:
    """The last graph that was captured, ready to be launched. For the device that is current in this thread."""

    def __init__(self, device: Device) -> None:
        import tvm_ffi

        self._cuda, self._use_stream, self._device = open_linked_library(RUNTIME), tvm_ffi.use_raw_stream, device.tvm
        self._stream_of = tvm_ffi.get_raw_stream
        self._stream, self._ready = Pointer(), Pointer()
        check_cuda(
            "cudaStreamCreateWithFlags", self._cuda.cudaStreamCreateWithFlags(ctypes.byref(self._stream), _NON_BLOCKING)
        )
        self._key: Hashable = None
        self._outputs: Outputs = ()
        self._off = False

    def launch(self, key: Hashable) -> Outputs | None:
        """Launch the graph of ``key``, if there is one: what its calls had returned."""
        if key != self._key:
            return None
        check_cuda("cudaGraphLaunch", self._cuda.cudaGraphLaunch(self._ready, Pointer(self._stream_of(self._device))))
        return self._outputs

    def capture(self, key: Hashable, calls: Callable[[], Outputs]) -> None:
        """Make the graph of what ``calls`` launches. Where that cannot be, kernels are launched one by one from then
        on, and the log says so."""
        if self._off:
            return
        try:
            self._outputs, self._key = self._capture(calls), key
        except Exception as error:  # whatever TVM makes of an error of CUDA
            self._key, self._outputs, self._off = None, (), True
            self._cuda.cudaGetLastError()
            print(f"tokens are not captured as CUDA graphs: {str(error).strip().splitlines()[-1]}", file=sys.stderr)

    def invalidate(self) -> None:
        """Something else has run: where memory is short, TVM may have freed what the graph writes to."""
        self._key = None

    def _capture(self, calls: Callable[[], Outputs]) -> Outputs:
        graph = Pointer()
        check_cuda("cudaStreamBeginCapture", self._cuda.cudaStreamBeginCapture(self._stream, _RELAXED))
        try:
            with self._use_stream(self._device, self._stream.value or 0):
                outputs = calls()
        finally:
            code = self._cuda.cudaStreamEndCapture(self._stream, ctypes.byref(graph))
        check_cuda("cudaStreamEndCapture", code)
        try:
            self._make_ready(graph)
        finally:
            self._cuda.cudaGraphDestroy(graph)
        return outputs

    def _make_ready(self, graph: Pointer) -> None:
        """Change the numbers of the graph that is ready, or, where there are other kernels in it, make it anew."""
        if self._ready:
            if not self._cuda.cudaGraphExecUpdate(self._ready, graph, ctypes.create_string_buffer(_INFO_BYTES)):
                return
            self._cuda.cudaGetLastError()
            check_cuda("cudaGraphExecDestroy", self._cuda.cudaGraphExecDestroy(self._ready))
            self._ready = Pointer()
        code = self._cuda.cudaGraphInstantiateWithFlags(ctypes.byref(self._ready), graph, ctypes.c_ulonglong(0))
        check_cuda("cudaGraphInstantiateWithFlags", code)
