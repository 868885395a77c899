"""Products and norms of a library for OpenCL, host code and kernels, run by PoCL on this CPU, against numpy in float64.

PoCL has no half precision on a CPU, so weights and scales are float32 here; tests/tvm/test_kernels.py has float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llm_build.targets.tvm_import import import_tvm

import_tvm()

import tvm  # noqa: E402
from tvm import ir  # noqa: E402

from llm_build.lowering.backends import gpu as gpu_code  # noqa: E402
from llm_build.lowering.kernel_modules import Schedules  # noqa: E402
from llm_build.lowering.machine import machine_of  # noqa: E402
from llm_build.lowering.schedules.gpu import linear  # noqa: E402
from llm_build.ops.emit import Label  # noqa: E402
from llm_build.ops.linear import LinearLabel  # noqa: E402
from llm_build.ops.norms import RMSNormLabel  # noqa: E402
from tests.targets.test_kernels_of_ranks import TARGET  # noqa: E402
from tests.tvm.test_kernels import close, empty, linear_case, normal  # noqa: E402

CASES = [  # outputs, inputs, how the weight is stored: tests/tvm/test_kernels.linear_case
    (70, 256, "float32"),
    (37, 70, "float32"),
    (70, 256, (4, 32, "group", "NK", "float32")),
    (30, 90, (4, 32, "group", "NK", "float32")),
    (41, 80, (3, 40, "group", "NK", "float32")),
    (33, 128, (8, 32, "group", "NK", "float32")),
    (70, 96, (4, 32, "group", "KN", "float32")),
    (37, 90, (3, 40, "group", "KN", "float32")),
    (37, 250, (4, 32, "group", "zeros", "float32")),
]
ROWS = (1, linear.GEMV_MAX_ROWS, linear.GEMV_MAX_ROWS + 1, linear.TILE + 3)  # GEMV, and one tile or two


class OnPocl:
    """The function of a label; ``call(*arrays)`` gives the last of them as it leaves it."""

    def __init__(self, label: Label) -> None:
        from tests.targets.opencl import Kernels

        machine = machine_of(TARGET, "x_")
        function = Schedules("gpu")[label.op](label, machine.traits).with_attr("global_symbol", label.op)
        module = ir.IRModule({label.op: function})
        with machine.tvm, tvm.transform.PassContext(opt_level=3):
            for _, transform in gpu_code.passes(machine):
                module = transform(module)
            parts = {of_host: {} for of_host in (True, False)}
            for variable, function in module.functions_items():
                parts[gpu_code.is_host(function)][variable] = function
            host, device = ir.IRModule(parts[True]), ir.IRModule(parts[False])
            for _, transform in gpu_code.HOST:
                host = transform(host)
            for _, transform in gpu_code.DEVICE:
                device = transform(device)
            kernels = Kernels(str(gpu_code.source_code(device, machine).inspect_source()))
            self.host = tvm.get_global_func("target.build.llvm")(host, machine.tvm.host)
        tvm.register_global_func("device_api.opencl", tvm.get_global_func("device_api.cpu"), override=True)
        for name in kernels.signatures:
            tvm.register_global_func(name, kernels.function(name), override=True)
        self.name, self.device = label.op, tvm.runtime.device("opencl", 0)

    def call(self, *arrays: np.ndarray) -> np.ndarray:
        tensors = [tvm.runtime.empty(a.shape, str(a.dtype), self.device).copyfrom(a) for a in arrays]
        self.host[self.name](*tensors)
        return tensors[-1].numpy()


@pytest.mark.parametrize(("n", "k", "stored"), CASES)
def test_products(n: int, k: int, stored: Any, pocl: None):
    storage, arrays, weight = linear_case(n, k, stored)
    bias = normal(n).astype(storage.dtype)
    function = OnPocl(LinearLabel(storage, bias=True, residual=True))
    for rows in ROWS:
        x, residual = normal(rows, k), normal(rows, n)
        close(function.call(x, residual, *arrays, bias, empty(rows, n)), x @ weight.T + bias + residual)


@pytest.mark.parametrize("stored", ["float32", (4, 32, "group", "NK", "float32"), (4, 32, "group", "KN", "float32")])
def test_products_beside_an_outlier(stored: Any, pocl: None):
    """As on the CPU: what is added to a stream of 24,350 is summed by itself."""
    n, k = 70, 1536
    storage, arrays, weight = linear_case(n, k, stored)
    function = OnPocl(LinearLabel(storage, bias=False, residual=True))
    for rows in ROWS:
        x, residual = normal(rows, k), 37 * normal(rows, n)
        residual[0] = 24_350
        product = x.astype(np.float64) @ weight.T
        expected = product + residual
        allowed = 2.0**-24 * np.abs(expected) + 2e-6 * np.abs(product).max()
        assert (np.abs(function.call(x, residual, *arrays, empty(rows, n)) - expected) <= allowed).all()


def test_norm_of_an_outlier(pocl: None):
    """Each row is normed by its own values, one with 24,350 in it too."""
    width, rows = 576, 5
    x, weight = 37 * normal(rows, width), normal(width)
    x[0, 3] = 24_350
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(1, keepdims=True) + 1e-5) * weight
    found = OnPocl(RMSNormLabel(width, 1e-5, "float32", residual=False)).call(x, weight, empty(rows, width))
    assert (np.abs(found - expected) <= 2e-6 * np.abs(expected).max(1, keepdims=True)).all()
