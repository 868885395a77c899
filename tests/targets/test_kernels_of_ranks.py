"""GPU kernels that only libraries for CUDA have, of one or several ranks, run by PoCL on this CPU, against numpy."""

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
from llm_build.ops import collectives  # noqa: E402
from llm_build.ops.emit import Label  # noqa: E402
from llm_build.ops.experts import ExpertSumLabel  # noqa: E402
from llm_build.ops.gated_linear import GatedLinearLabel  # noqa: E402
from llm_build.ops.weights import StoredWeight  # noqa: E402

LIMITS = ("max_threads_per_block", "max_shared_memory_bytes", "max_binding_bytes", "max_storage_buffers")
TARGET = {
    "kind": "opencl", "triple": "x86_64-linux-gnu", "cpu": "", "features": [], "arch": [], "library": "tar",
    "supports": [], "limits": dict.fromkeys(LIMITS, 0),
}  # fmt: skip
ROWS, THREADS = 3, 256
RANDOM = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]


def numbers(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def joined() -> tuple[Label, Arrays, np.ndarray, int]:
    x = numbers(2 * ROWS, 37)
    return collectives.JoinedLabel(2, 37), {"x": x}, np.concatenate([x[:ROWS], x[ROWS:]], 1), ROWS * 74


def add() -> tuple[Label, Arrays, np.ndarray, int]:
    arrays = {"x": numbers(ROWS, 50), "residual": numbers(ROWS, 50), "bias": numbers(50)}
    label = collectives.AddLabel(50, residual=True, bias=True, dtype="float32")
    return label, arrays, arrays["x"] + arrays["residual"] + arrays["bias"], ROWS * 50


HEADS = (100, 48, 24)  # features, q_width, k_width


def qk_means() -> tuple[Label, Arrays, np.ndarray, int]:
    x = numbers(ROWS, 100)
    means = [(x[:, part] ** 2).mean(1) for part in (slice(48), slice(48, 72))]
    return collectives.QKMeansLabel(*HEADS), {"x": x}, np.stack(means, 1), ROWS * THREADS


def qk_scaled() -> tuple[Label, Arrays, np.ndarray, int]:
    arrays = {"x": numbers(ROWS, 100), "means": numbers(ROWS, 2) ** 2, "q_weight": numbers(48), "k_weight": numbers(24)}
    roots, expected = np.sqrt(arrays["means"] / 2 + 1e-3), arrays["x"].copy()
    expected[:, :48] *= arrays["q_weight"] / roots[:, :1]
    expected[:, 48:72] *= arrays["k_weight"] / roots[:, 1:]
    return collectives.QKScaledLabel(*HEADS, 1e-3, "float32", ranks=2), arrays, expected, ROWS * 100


def expert_sum() -> tuple[Label, Arrays, np.ndarray, int]:
    x, shares = numbers(2 * ROWS, 30), numbers(ROWS, 2)
    arrays = {"x": x, "routes": np.concatenate([np.zeros_like(shares), shares], 1)}
    return ExpertSumLabel(2, residual=False), arrays, (x.reshape(ROWS, 2, 30) * shares[..., None]).sum(1), ROWS * 30


def gated_linear() -> tuple[Label, Arrays, np.ndarray, int]:
    """Widths that are no whole number of blocks, and rows of several chunks."""
    width, k = 21, 12_300
    x, weight = numbers(1, k), numbers(2 * width, k) / np.float32(k**0.5)
    gate, up = np.split(x.astype(np.float64) @ weight.astype(np.float64).T, 2, 1)
    label = GatedLinearLabel(width, "silu_mul", StoredWeight(2 * width, k, "none", "float32"))
    return label, {"x": x, "weight": weight}, gate / (1 + np.exp(-gate)) * up, -(-width // 8) * THREADS


@pytest.mark.parametrize(
    "case", [joined, add, qk_means, qk_scaled, expert_sum, gated_linear], ids=lambda case: case.__name__
)
def test_against_numpy(case: Any, pocl: None):
    from tests.targets.opencl import Kernels

    label, arrays, expected, threads = case()
    found, sizes = np.full(expected.shape, np.nan, np.float32), {"rows": ROWS, "width": expected.shape[1]}
    kernels = Kernels(source(label))
    ((name, signature),) = kernels.signatures.items()
    given = {f"{key}_ptr": array.ctypes.data for key, array in {**arrays, "y": found}.items()} | sizes
    words = [given[argument.split()[-1].lstrip("*")] for argument in signature]
    kernels.function(name)(*words, -(-threads // THREADS), 1, THREADS)
    assert np.abs(found - expected).max() < 1e-5


def source(label: Label) -> str:
    machine = machine_of(TARGET, "x_")
    kernel = Schedules("gpu")[label.op](label, machine.traits).with_attr("global_symbol", label.op)
    module = ir.IRModule({label.op: kernel})
    with machine.tvm, tvm.transform.PassContext(opt_level=3):
        for _, transform in gpu_code.passes(machine):
            module = transform(module)
        kernels = {variable: f for variable, f in module.functions_items() if not gpu_code.is_host(f)}
        module = ir.IRModule(kernels)
        for _, transform in gpu_code.DEVICE:
            module = transform(module)
        return str(gpu_code.source_code(module, machine).inspect_source())
