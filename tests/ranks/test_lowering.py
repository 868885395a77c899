"""What several ranks change in a graph, and that one rank changes nothing."""

from __future__ import annotations

from typing import Any

import pytest

from llm_build.targets.tvm_import import import_tvm

import_tvm()

from tvm import relax  # noqa: E402

from llm_build import architectures  # noqa: E402
from llm_build.lowering.machine import machine_of  # noqa: E402
from llm_build.lowering.passes import fuse_allreduce_rmsnorm, fuse_gate_up  # noqa: E402
from llm_build.models.decoder import Model  # noqa: E402
from llm_build.targets.peer_allreduce import SUM_NORM  # noqa: E402
from tests.tvm import tiny  # noqa: E402

COLLECTIVES = ("allreduce", "allgather", "broadcast_from_worker0")


def graph(ranks: int, *passes: Any) -> dict[str, str]:
    """The functions of a small Llama after these passes, as text."""
    config = architectures.load("llama").from_architecture({**tiny.BASE, "num_hidden_layers": 2, "vocab_size": 204})
    metadata = {**tiny.METADATA, "tensor_parallel_shards": ranks}
    model = Model(architectures.load("llama").describe(config), tiny.SCHEMES["q0f32"], metadata)
    module, _ = model.export_tvm(spec=model.functions())
    for transform in (relax.transform.LegalizeOps(), relax.transform.DeadCodeElimination(), *passes):
        module = transform(module)
    functions = module.functions_items()
    return {variable.name_hint: str(f) for variable, f in functions if isinstance(f, relax.Function)}


def counts(text: str) -> dict[str, int]:
    return {name: text.count(f'"runtime.disco.{name}"') for name in COLLECTIVES}


def test_one_rank_calls_no_collective():
    assert not any("disco" in text for text in graph(1).values())


def test_ranks_sum_twice_a_layer_and_gather_logits():
    found = graph(2)
    one_pass = {"allreduce": 4, "allgather": 1, "broadcast_from_worker0": 0}
    for name in ("prefill", "decode", "batch_decode", "batch_verify"):
        assert counts(found[name]) == one_pass, name
    assert counts(found["embed"]) == {"allreduce": 0, "allgather": 0, "broadcast_from_worker0": 1}
    assert counts(found["batch_prefill"]) == {**one_pass, "broadcast_from_worker0": 1}


CUDA = {
    "kind": "cuda", "triple": "x86_64-linux-gnu", "cpu": "", "features": [], "arch": ["sm_90a"], "library": "so",
    "supports": [], "limits": dict.fromkeys(
        ("max_threads_per_block", "max_shared_memory_bytes", "max_binding_bytes", "max_storage_buffers"), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize(("function", "fused"), [("decode", 4), ("batch_decode", 4), ("prefill", 0)])
def test_sums_take_their_norms_along_where_there_are_few_rows(function: str, fused: int):
    """The last norm of the model as well; what adds to the sum later has the sum itself."""
    text = graph(2, fuse_allreduce_rmsnorm.fuse_allreduce_rmsnorm(machine_of(CUDA)))[function]
    assert text.count(f'"{SUM_NORM}"') == fused
    assert counts(text)["allreduce"] == 4 - fused
    assert text.count("R.call_tir(rms_norm") == 5 - fused  # the first one is of the embedding


@pytest.mark.parametrize(("function", "fused"), [("decode", 2), ("batch_decode", 0), ("prefill", 0)])
def test_a_decoded_token_has_its_gates_in_the_products(function: str, fused: int):
    text = graph(1, fuse_gate_up.fuse_gate_up())[function]
    assert text.count("R.call_tir(gated_linear") == fused
    assert text.count("R.call_tir(silu_mul") == 2 - fused
    assert text.count("R.call_tir(linear") == 9 - fused
