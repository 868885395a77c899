"""Schemes through the real steps on a random model: packed, lowered, run, and green under its limits.

A model with random weights has several times the error of a trained one, so the limits must have room for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
import yaml

from llm_build.config.choices import choices_of, find_folders
from llm_build.config.schema import Quant
from llm_build.ops import linear as relax
from llm_build.ops.emit import prim_func
from llm_build.planner.schemes import schemes
from llm_build.quant import layout, reference
from tests.e2e import chain
from tests.weights.weights_line import run_weights, source_tensors, write_checkpoint

SCHEMES = [  # one of each way to store
    "q3f16_0", "q4bf16_1", "e4m3_f16", "mixed_q3_q4_q6", "q4f16_zp32", "w8a8", "e4m3_e4m3_f16",
]  # fmt: skip


def scheme_named(name: str, family: str, architecture: dict[str, Any]) -> dict[str, Any]:
    folders = find_folders()
    quant = Quant(**yaml.safe_load(choices_of("quant", folders)[name].read_text()))
    return schemes.scheme_of(schemes.resolve_rules(quant, family, architecture, folders))


@pytest.mark.parametrize("name", SCHEMES)
def test_scheme_is_built_and_verified(name: str, tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "model", source_tensors())
    family, architecture = chain.architecture_of(checkpoint)
    scheme = scheme_named(name, family, architecture)
    built = run_weights(checkpoint, tmp_path, architecture, scheme, family=family, max_shard_bytes=20000)
    line = chain.Line(tmp_path, family, architecture, scheme, built)
    out = line.verify(line.package(line.library("library")), line.references())
    assert out.facts["exact_error"] < (0.2 if scheme.get("activation") else 2e-5)


@pytest.mark.parametrize(
    "scheme",
    [
        layout.Scheme("e4m3", "e4m3", 8, 0, "NK", "float16", "uint32", True, True),
        layout.Scheme("e5m2", "e5m2", 8, 0, "NK", "float32", "uint32", True, True),
        layout.Scheme("q3f16_0", "group", 3, 40, "KN", "float16", "uint32", True, True),
        layout.Scheme("q3f16_zp8", "group", 3, 8, "NK", "float16", "uint32", True, True, zero_point=True),
    ],
    ids=lambda scheme: scheme.name,
)
def test_plain_loops_read_what_is_packed(scheme: layout.Scheme):
    """The meaning of the operation, which a target without a kernel of its own runs."""
    n, k = 5, 46
    weight = np.random.default_rng(2).standard_normal((n, k)).astype(np.float32)
    weight[0, :6] = [0, 1e-5, -1e-5, 3e-4, 1e-3, -0.01]  # subnormal 8-bit floats among them
    packed = reference.quantize(weight, scheme)
    arrays = [np.ascontiguousarray(a.T) if scheme.layout == "KN" else a for a in packed]
    label = relax.LinearLabel(relax.Linear(n, k, scheme).storage, bias=False, residual=False)
    signature = (("rows", k), "float32"), *((a.shape, str(a.dtype)) for a in arrays)
    function = prim_func(label, relax.product, signature)
    built = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target="llvm")
    given = [tvm.runtime.tensor(a) for a in (np.eye(k, dtype=np.float32), *arrays, np.zeros((k, n), np.float32))]
    built["main"](*given)
    np.testing.assert_array_equal(given[-1].numpy().T, reference.dequantize(*packed[:2], k, scheme, *packed[2:]))
