"""Products on tensor cores: which weights get them, what of them layers share, and the limits of their arithmetic.

Their numbers are checked on a GPU: tools/gpu/check runs a cell for each way in which weights are stored.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llm_build.lowering.machine import machine_of
from llm_build.lowering.schedules.gpu import tensor_products
from llm_build.lowering.schedules.gpu.weights import weight_of
from llm_build.ops.weights import StoredWeight
from llm_build.targets import tensor_products as text
from llm_build.verification.limits import with_arithmetic
from tests.tvm.test_gpu_code import cuda_kernels, params, target

Q4 = {
    "kind": "group", "dtype": "float16", "bits": 4, "group_size": 32, "per_word": 8, "words_per_group": 4, "max_int": 7,
    "scale_dtype": "float16",
}  # fmt: skip
Q3 = {**Q4, "bits": 3, "group_size": 40, "per_word": 10, "max_int": 3}
BYTES = {**Q4, "kind": "e4m3", "bits": 8, "per_word": 4}


def fits(n: int, k: int, dtype: str = "float16", **stored: object) -> bool:
    fields = {"kind": "none", "dtype": dtype, **stored}
    return tensor_products.fits(weight_of(StoredWeight(n, k, **fields)), str(fields["dtype"]))  # type: ignore[arg-type]


def test_weights_of_16_bit_schemes_get_them_whatever_their_sizes():
    assert fits(151_936, 896)
    assert fits(10, 688)
    assert not fits(10, 690)  # eight inputs at a time
    assert not fits(64, 64, "float32")
    assert fits(64, 64, "bfloat16")
    assert fits(1000, 688, **Q4)
    assert fits(1000, 688, **Q3)
    assert fits(1000, 688, **Q4, layout="KN")
    assert not fits(1001, 688, **Q4, layout="KN")  # four outputs at a time
    assert fits(1000, 688, **Q4, zero_point=True)
    assert not fits(64, 64, **{**Q4, "scale_dtype": "float32"})
    of_rows = {"group_size": 688, "words_per_group": 172}
    assert fits(1000, 688, **{**BYTES, **of_rows, "scale_dtype": "float32"})


def test_only_sm_90a_has_them():
    traits = {arch: machine_of(target("cuda", arch=list(arch))).traits for arch in (("sm_90a",), ("sm_89", "sm_90a"))}
    assert [bool(each.tensor_products) for each in traits.values()] == [True, False]


@pytest.mark.parametrize("weight_bytes", [32, 48, 64, 80, 128])
@pytest.mark.parametrize("tokens", text.TOKENS)
def test_shared_memory_of_a_block_fits(tokens: int, weight_bytes: int):
    if tokens == 256 and weight_bytes == 128:
        return  # weights that are kept as they are come 128 rows at a time
    assert text.stages(tokens, weight_bytes) >= 3
    assert text.shared_bytes(tokens, weight_bytes) <= 227 << 10


def test_bytes_of_a_step_hold_64_inputs_wherever_they_begin():
    for per_word in (4, 5, 8, 10, 16):
        for turned in (False, True):
            unit = per_word if turned else 4 * per_word
            touched = {(64 * step + 63) // unit - 64 * step // unit + 1 for step in range(100)}
            assert text.bytes_of_step(per_word, turned) == max(touched) * (4 if turned else 16)


def test_layers_of_all_sizes_share_the_products(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Two of each: with a residual and without one."""
    source, kernels = cuda_kernels(monkeypatch, tmp_path, params(target("cuda", arch=["sm_90a"])))
    calls = [re.findall(rf"{text.NAMESPACE}::product<(\d+)", body) for body in kernels.values()]
    found = sorted(int(tokens) for each in calls for tokens in each)
    assert found == sorted([*text.TOKENS, *text.TOKENS])
    assert "bf16.bf16" not in source  # only what is called is compiled


def test_limits_of_16_bit_arithmetic_grow_with_its_roundoff_and_the_depth():
    limits = {"exact_max": 1e-4, "exact_rms": 1e-5, "kl": 0.1}
    assert with_arithmetic(limits, "", 4) == limits
    half = with_arithmetic(limits, "float16", 4)
    assert half == {"exact_max": pytest.approx(0.01171875), "exact_rms": pytest.approx(0.001953125), "kl": 0.1}
    deep, brain = with_arithmetic(limits, "float16", 16), with_arithmetic(limits, "bfloat16", 4)
    assert deep["exact_max"] == 2 * half["exact_max"]
    assert brain["exact_max"] == 8 * half["exact_max"]
