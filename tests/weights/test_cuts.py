"""Tensor parallelism cuts every family's stored tensors so that ranks hold, dequantized, the rows and columns that the
model's own layout says, and nothing else; what cannot be cut evenly is said in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import yaml

from llm_build import architectures
from llm_build.architectures.cuts import cut_of, local_parameters
from llm_build.architectures.weights import Parameter
from llm_build.config.choices import shipped
from llm_build.config.schema import Quant
from llm_build.config.strict import parse
from llm_build.formats.slicing import slicing_from_json, take_tp_shard
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.quant import cuts, layout, reference
from llm_build.quant.layout import Scheme, is_transposed, stored_tensors
from llm_build.quant.storage import NUMPY_DTYPE
from tests.matrix.checkpoints import FAMILIES, SIZES

HEADS = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "vocab_size": 96,
}
SCHEMES = ("q0f16", "q4f16_0", "q4f16_1", "q4f16_zp32", "e4m3_f16", "e4m3_e4m3_f16", "mixed_q4_q8")


def config_of(family: str, **changes: Any) -> Any:
    own = {**SIZES, **FAMILIES[family], **HEADS, **changes}
    return architectures.load(family).from_hf({"model_type": family, **own})


def scheme_named(name: str, table: tuple[Parameter, ...]) -> Scheme:
    from llm_build.quant import rules

    def read(choice: str) -> dict[str, Any]:
        text = (shipped("conf") / "quant" / f"{choice}.yaml").read_text("utf-8")
        return scheme_of(parse(Quant, yaml.safe_load(text), "quant"))

    found = read(name)
    if found.get("rules"):
        names = [parameter.name for parameter in table]
        found["rules"] = rules.resolve(found["rules"], names, found["dtype"], read)
    return layout.parse_scheme(found)


def stored(piece: layout.StoredTensor, random: np.random.Generator) -> np.ndarray:
    """Any bytes that are no NaN."""
    if piece.dtype == "uint32":
        return random.integers(0, 1 << 32, piece.shape, np.uint32) & np.uint32(0x77777777)
    return random.uniform(0.5, 2, piece.shape).astype(NUMPY_DTYPE[piece.dtype])


def dequantized(parameter: Parameter, arrays: Mapping[str, np.ndarray], scheme: Scheme) -> np.ndarray:
    scheme = scheme.for_parameter(parameter.name)
    by_role = {piece.role: arrays[piece.name] for piece in stored_tensors(parameter, scheme)}
    assert {piece.name: piece.shape for piece in stored_tensors(parameter, scheme)} == {
        k: v.shape for k, v in arrays.items()
    }
    if "plain" in by_role:
        return by_role["plain"]
    if is_transposed(parameter, scheme):
        by_role = {role: array.T for role, array in by_role.items()}
    width = parameter.shape[1]
    return reference.dequantize(by_role["weight"], by_role["scale"], width, scheme, by_role.get("zero"))


def expected(config: Any, name: str, whole: np.ndarray, rank: int, shards: int) -> np.ndarray:
    """A rank's part of a parameter, written from what its rows and columns mean."""
    *_, module, kind = name.split(".")
    width, queries = config.head_dim, config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", queries)
    mine = range(rank * queries // shards, (rank + 1) * queries // shards)
    read = sorted({head // (queries // keys) for head in mine})  # the key heads of my query heads
    inner = getattr(config, "moe_intermediate_size", 0) or config.intermediate_size
    own = slice(rank * inner // shards, (rank + 1) * inner // shards)
    if module in ("qkv_proj", "q_norm", "k_norm") and len(whole) > width:
        starts = {"qkv_proj": (0, queries, queries + keys), "q_norm": (0,), "k_norm": (queries,)}[module]
        heads = {0: list(mine), queries: read, queries + keys: read}
        by_head = whole.reshape(-1, width, *whole.shape[1:])
        offset = queries if module == "k_norm" else 0
        rows = [start + head - offset for start in starts for head in heads[start]]
        return by_head[rows].reshape(-1, *whole.shape[1:])
    if module in ("o_proj", "dense") and kind == "weight":
        found = whole.reshape(len(whole), queries, width)[:, list(mine)].reshape(len(whole), -1)
    elif module in ("gate_up_proj", "dense_h_to_4h"):
        found = whole.reshape(-1, inner, *whole.shape[1:])[:, own].reshape(-1, *whole.shape[1:])
    elif module in ("down_proj", "dense_4h_to_h") and kind == "weight":
        found = whole[:, own]
    elif module in ("lm_head", "embed_out"):
        found = whole[rank * len(whole) // shards : (rank + 1) * len(whole) // shards]
    else:
        found = whole
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_hold_what_the_model_says(family: str) -> None:
    """Two ranks, and four, which share two heads of keys and values."""
    config = config_of(family)
    module = architectures.load(family)
    table, cut = module.parameters(config), module.cuts(config)
    first = [p for p in table if layout.layer_of(p.name) in (None, 0)]
    assert not set(cut) - {p.name.rpartition(".")[0] for p in table}
    for name in SCHEMES:
        scheme, random = scheme_named(name, table), np.random.default_rng(0)
        for shards in (2, 4):
            for whole, part in zip(first, local_parameters(first, cut, shards), strict=True):
                arrays = {piece.name: stored(piece, random) for piece in stored_tensors(whole, scheme)}
                shares = cuts.split_parameter(whole, cut, scheme, shards)
                assert cuts.split_problem(whole, cut, scheme, shards) == ""
                for rank in range(shards):
                    own = {s.full.name: take_tp_shard(arrays[s.full.name], s.slicing, rank, shards) for s in shares}
                    again = {s.full.name: slicing_from_json(cuts.slicing_json(s)) for s in shares}
                    assert all((take_tp_shard(arrays[n], c, rank, shards) == own[n]).all() for n, c in again.items())
                    wanted = expected(config, whole.name, dequantized(whole, arrays, scheme), rank, shards)
                    np.testing.assert_array_equal(dequantized(part, own, scheme), wanted, f"{whole.name} {name}")


def test_zero_points_that_do_not_fill_a_word() -> None:
    """Of 6 groups of 4 bits each of 3 ranks has 2."""
    words = np.array([[0x00654321], [0x00FEDCBA]], np.uint32)
    cut = slicing_from_json({"axis": 1, "parts": [[6, 1]], "blocks": 1, "bits": 4})
    assert [take_tp_shard(words, cut, rank, 3).tolist() for rank in range(3)] == [
        [[0x21], [0xBA]], [[0x43], [0xDC]], [[0x65], [0xFE]],
    ]  # fmt: skip


MISFITS = [
    ({}, "q4f16_1", 3, "num_attention_heads is 4, which 3 does not divide"),
    ({"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32}, "q4f16_1", 2,
     "num_key_value_heads is 3, which 2 does not divide, nor is it a multiple of that"),
    ({"intermediate_size": 510}, "q0f16", 4, "intermediate_size is 510, which 4 does not divide"),
    ({"intermediate_size": 480}, "q4f16_1", 2,
     "mlp.down_proj.weight has groups of 32 inputs, and 2 ranks would have 240 inputs each"),
    ({}, "q3f16_1", 2, "self_attn.o_proj.weight has groups of 40 inputs, and 2 ranks would have 64 inputs each"),
    ({"intermediate_size": 510}, "e4m3_f16", 2,
     "mlp.down_proj.weight has words of 4 weights, and 2 ranks would have 255 inputs each"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "scheme", "shards", "words"), MISFITS)
def test_what_cannot_be_cut_is_said(changes: dict[str, Any], scheme: str, shards: int, words: str) -> None:
    config = config_of("llama", **changes)
    table, cut = architectures.load("llama").parameters(config), architectures.load("llama").cuts(config)
    found = [cuts.split_problem(parameter, cut, scheme_named(scheme, table), shards) for parameter in table]
    assert next(said for said in found if said).endswith(words)


def test_a_vocabulary_that_cannot_be_dealt_out_stays_whole() -> None:
    config = config_of("llama", vocab_size=97)
    module = architectures.load("llama")
    head = module.parameters(config)[-1]
    assert head.kind == "head"
    assert cut_of(head, module.cuts(config), 2) is None
    assert cut_of(head, module.cuts(config_of("llama")), 2) is not None


def test_what_a_library_says_of_a_cut_tensor() -> None:
    config = config_of("llama")
    module = architectures.load("llama")
    table = module.parameters(config)
    shares = cuts.split_tensors(table, module.cuts(config), scheme_named("q4f16_1", table), 2)
    assert cuts.preprocs(shares["model.norm.weight"], 2) == []
    assert cuts.preprocs(shares["model.layers.0.self_attn.qkv_proj.q_weight"], 2) == [
        {"func_name": "shard_uint32_256x16_axis0_4x32_2x32_2x32_blocks1", "in_shape": [256, 16],
         "out_shape": [2, 128, 16], "out_dtype": "uint32"},
    ]  # fmt: skip
