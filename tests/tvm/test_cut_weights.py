"""The library's own functions that cut weights for readers of whole files do what the build does with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from llm_build import architectures
from llm_build.formats.slicing import take_tp_shard
from llm_build.lowering.machine import machine_of
from llm_build.lowering.passes import cut_weights
from llm_build.quant import cuts
from tests.weights.test_cuts import config_of, scheme_named, stored

HOST = {"kind": "cpu", "triple": "x86_64-linux-gnu", "cpu": "x86-64-v3", "features": []}
CUDA = {
    "kind": "cuda", "triple": "x86_64-linux-gnu", "cpu": "", "features": [], "arch": ["sm_90a"],
    "limits": {"max_threads_per_block": 1024, "max_shared_memory_bytes": 49152},
}  # fmt: skip
CASES = [  # shared heads, transposed words, experts, zero points that are packed anew
    ("llama", "q0f16", 4, 0), ("llama", "q4f16_0", 4, 0), ("mixtral", "q4f16_1", 2, 0), ("qwen2", "q4f16_zp32", 4, 256),
]  # fmt: skip


@pytest.mark.parametrize(("family", "scheme", "shards", "zeros"), CASES)
def test_functions_cut_as_numpy_does(family: str, scheme: str, shards: int, zeros: int) -> None:
    module = architectures.load(family)
    config = config_of(family, num_hidden_layers=1, vocab_size=64)
    table = module.parameters(config)
    shares = cuts.split_tensors(table, module.cuts(config), scheme_named(scheme, table), shards)
    distinct = {each["func_name"]: share for share in shares.values() for each in cuts.preprocs(share, shards)}
    assert len(distinct) > 3
    assert any(share.slicing.bits for share in distinct.values()) == bool(zeros)
    added = cut_weights.attach(shares, shards, machine_of(HOST))(tvm.IRModule())
    assert sorted(variable.name_hint for variable in added.get_global_vars()) == sorted(distinct)
    library = tvm.compile(added, target=machine_of(HOST).tvm)
    for name, share in distinct.items():
        given = stored(share.full, np.random.default_rng(0))
        parts = tvm.runtime.empty((shards, *share.local.shape), share.full.dtype)
        library[name](tvm.runtime.tensor(given), parts)
        wanted = np.stack([take_tp_shard(given, share.slicing, rank, shards) for rank in range(shards)])
        np.testing.assert_array_equal(parts.numpy(), wanted, name)


def test_a_gpu_has_a_thread_for_each_value() -> None:
    config = config_of("llama", num_hidden_layers=1)
    module = architectures.load("llama")
    table = module.parameters(config)
    shares = cuts.split_tensors(table, module.cuts(config), scheme_named("q4f16_1", table), 2)
    kernel = cut_weights.kernel(shares["lm_head.q_weight"], 2, machine_of(CUDA))
    assert 'thread("threadIdx.x"' in str(kernel).replace("launch_thread", "thread")
