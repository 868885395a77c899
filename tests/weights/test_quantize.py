"""shard and quantize: what lies where, and what is refused."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from llm_build.architectures.weights import Entry, Parameter, Slice, whole
from llm_build.core.errors import UserError
from llm_build.core.step_io import File
from llm_build.quant import reference
from llm_build.quant.layout import Scheme
from llm_build.quant.storage import narrow
from llm_build.steps import quantize, shard
from tests.weights.weights_line import (
    ARCHITECTURE,
    Built,
    FolderOut,
    group_scheme,
    plain_scheme,
    run_weights,
    source_tensors,
    write_checkpoint,
    write_tensors,
)

Q4 = group_scheme("q4f16_1")
SCHEMES = [Q4, group_scheme("q4f32_1", dtype="float32"), group_scheme("q3", bits=3, group_size=40)]
SCHEMES += [
    group_scheme("q4bf16_1", dtype="bfloat16"),
    group_scheme("q3f16_0", bits=3, group_size=40, layout="KN"),
    group_scheme("e4m3_f16", kind="e4m3", bits=8, group_size=0),
]


def build(tmp_path: Path, name: str, scheme: Scheme, dtype: str = "F16", **options: Any) -> Built:
    folder = tmp_path / f"{name}-source"
    if not folder.exists():
        write_checkpoint(folder, options.pop("tensors", None) or source_tensors(dtype))
    return run_weights(folder, tmp_path / name, ARCHITECTURE, asdict(scheme), **options)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_every_tensor_is_the_reference(tmp_path: Path, scheme: Scheme, dtype: str) -> None:
    stored = build(tmp_path, "x", scheme, dtype, max_shard_bytes=5000).arrays()
    source = {
        name: (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else array.astype(np.float32)
        for name, (_, array) in source_tensors(dtype).items()
    }
    stem = "model.layers.1"
    rows = [source[f"{stem}.self_attn.{part}_proj.weight"] for part in "qkv"]
    for name, weight in {
        "model.embed_tokens": source["model.embed_tokens.weight"],
        "lm_head": source["lm_head.weight"],
        f"{stem}.self_attn.qkv_proj": np.concatenate(rows),
        f"{stem}.mlp.down_proj": source[f"{stem}.mlp.down_proj.weight"],
    }.items():
        words, scales = reference.quantize(weight, scheme)
        if scheme.layout == "KN" and name != "model.embed_tokens":
            words, scales = words.T, scales.T
        np.testing.assert_array_equal(stored[f"{name}.q_weight"], words)
        np.testing.assert_array_equal(stored[f"{name}.q_scale"], scales)
    np.testing.assert_array_equal(stored["model.norm.weight"], narrow(source["model.norm.weight"], scheme.dtype))
    assert "model.norm.q_weight" not in stored


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(tmp_path, "x", Q4).arrays()
    monkeypatch.setattr("llm_build.quant.pack.BLOCK_WEIGHTS", 300)
    small = build(tmp_path, "y", Q4).arrays()
    assert all(np.array_equal(whole[name], small[name]) for name in whole)


def test_plain_schemes(tmp_path: Path) -> None:
    source = source_tensors("F16")
    exact = build(tmp_path, "x", plain_scheme("q0f32", "float32")).arrays()
    np.testing.assert_array_equal(exact["lm_head.weight"], source["lm_head.weight"][1].astype(np.float32))
    brain = build(tmp_path, "b", plain_scheme("q0bf16", "bfloat16")).arrays()
    expected = source["lm_head.weight"][1].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(brain["lm_head.weight"], expected.view(np.uint16))
    same = build(tmp_path, "y", plain_scheme("q0f16", "float16")).arrays()
    np.testing.assert_array_equal(same["lm_head.weight"], source["lm_head.weight"][1])
    singles = source_tensors("F32")
    cast = build(tmp_path, "z", plain_scheme("q0f16", "float16"), "F32").arrays()
    np.testing.assert_array_equal(cast["lm_head.weight"], singles["lm_head.weight"][1].astype(np.float16))


def test_shards_and_their_records(tmp_path: Path) -> None:
    built = build(tmp_path, "x", Q4, max_shard_bytes=6000)
    table = built.shard.json("parameters.json")
    assert table["total_parameters"] == sum(array.size for _, array in source_tensors().values())
    assert len(built.quantize) == len({row["shard"] for row in table["parameters"]}) > 3
    for index, item in enumerate(built.quantize):
        entry = item.json("records.json")
        data = (item.folder / f"params_shard_{index}.bin").read_bytes()
        assert entry["md5sum"] == hashlib.md5(data).hexdigest()
        assert (entry["dataPath"], entry["nbytes"]) == (f"params_shard_{index}.bin", len(data))
        assert len(data) <= 6000
        end = 0
        rows = [row for row in table["parameters"] if row["shard"] == index]
        for record, row in zip(entry["records"], rows, strict=True):
            expected = (row["name"], row["offset"], row["nbytes"])
            assert (record["name"], record["byteOffset"], record["nbytes"]) == expected
            assert (record["byteOffset"], record["format"]) == (end, "raw")
            end += record["nbytes"]
        assert end == len(data)


def entries_of(*shapes: tuple[str, tuple[int, int]]) -> list[Entry]:
    return [Entry(Parameter(name, shape, "linear"), "copy", (whole(name, shape),)) for name, shape in shapes]


def names(shards: list[shard.Shard]) -> list[list[str]]:
    return [[tensor.name for _, tensor, _ in shard.tensors] for shard in shards]


def test_greedy_layout() -> None:
    """Words of (32, 64) take 1024 bytes, scales 128."""
    four = entries_of(*[(f"{letter}.weight", (32, 64)) for letter in "abcd"])
    both = [[f"{letter}.{part}" for part in ("q_weight", "q_scale")] for letter in "abcd"]
    assert names(shard.lay_out(four, Q4, 2 * 1152)) == [both[0] + both[1], both[2] + both[3]]
    assert names(shard.lay_out(four, Q4, 2 * 1152 - 1)) == both
    assert names(shard.lay_out(four, Q4, 1 << 20)) == [[name for pair in both for name in pair]]
    assert names(shard.lay_out(four, Q4, 1000)) == both  # larger than a shard: one of its own
    apart = names(shard.lay_out(entries_of(("a.weight", (32, 64)), ("b.weight", (8, 64))), Q4, 1100))
    assert apart == [["a.q_weight"], ["a.q_scale", "b.q_weight", "b.q_scale"]]  # each fits, both together do not


def test_a_parameter_split_over_two_shards_is_the_same(tmp_path: Path) -> None:
    whole = build(tmp_path, "x", Q4)
    split = build(tmp_path, "y", Q4, max_shard_bytes=3100)  # the embedding's words take 3072
    first = split.quantize[0].json("records.json")["records"]
    assert [record["name"] for record in first] == ["model.embed_tokens.q_weight"]
    one, two = whole.arrays(), split.arrays()
    assert sorted(one) == sorted(two)
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_two_runs_are_byte_identical(tmp_path: Path) -> None:
    first, second = (build(tmp_path, name, Q4, max_shard_bytes=6000) for name in "xy")
    for one, two in zip(
        [first.fetch, first.convert, first.shard, *first.quantize],
        [second.fetch, second.convert, second.shard, *second.quantize],
        strict=True,
    ):
        assert sorted(one.written) == sorted(two.written)
        assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in one.written)


def test_an_item_depends_on_its_own_tensors_only(tmp_path: Path) -> None:
    built = build(tmp_path, "x", Q4, max_shard_bytes=7000)
    items = built.shard.json("shards.json")["items"]
    changed = "model.layers.1.mlp.up_proj.weight"
    assert [item["name"] for item in items if changed in item["inputs"]] == [
        str(row["shard"])
        for row in built.shard.json("parameters.json")["parameters"]
        if row["name"] == "model.layers.1.mlp.gate_up_proj.q_weight"
    ]
    assert all(port[1] == f"tensor/{name}" for item in items for name, port in item["inputs"].items())


def poison(value: float, dtype: str = "F16") -> dict[str, tuple[str, np.ndarray]]:
    tensors = source_tensors(dtype)
    tensors["model.layers.0.self_attn.k_proj.weight"][1][3, 5:7] = value
    return tensors


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", [Q4, plain_scheme("q0f16", "float16"), plain_scheme("q0f32", "float32")])
def test_nonfinite_weights_are_counted_and_refused(tmp_path: Path, value: float, scheme: Scheme) -> None:
    with pytest.raises(UserError) as error:
        build(tmp_path, "x", scheme, tensors=poison(value))
    assert error.value.message.startswith("model.layers.0.self_attn.qkv_proj.weight: 2 weights NaN or infinite")
    assert "allow_nonfinite=true" in error.value.hint
    built = build(tmp_path, "x", scheme, allow_nonfinite=True)
    (item,) = built.quantize
    assert "2 weights NaN or infinite" in item.warnings[0]
    assert item.facts["weights_nonfinite"] == 2


def test_a_cast_that_overflows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 weights too large for the dtype"):
        build(tmp_path, "x", plain_scheme("q0f16", "float16"), tensors=poison(1e6, "F32"))
    assert build(tmp_path, "x", plain_scheme("q0f32", "float32")).quantize[0].warnings == []


def test_saturated_scales_are_counted_and_warned(tmp_path: Path) -> None:
    built = build(tmp_path, "x", Q4, tensors=poison(1e6, "F32"))
    assert built.quantize[0].facts["scales_saturated"] == 1
    assert "saturated: 1 scale, most in" in built.quantize[0].warnings[0]


def test_a_transposed_source(tmp_path: Path) -> None:
    weight = (np.random.default_rng(0).standard_normal((96, 40)) * 0.1).astype(np.float16)  # (input, output)
    write_tensors(tmp_path / "x", {"pad": ("F16", np.zeros(3, np.float16)), "w": ("F16", weight)})
    size = (tmp_path / "x").stat().st_size
    source = Slice("w", (96, 40), 0, 96, "F16")
    entry = Entry(Parameter("w.weight", (40, 96), "linear"), "transpose", (source,))
    (found,) = shard.lay_out([entry], Q4, 1 << 20)
    item = shard._item(0, found, Q4, False, [])
    out = FolderOut(tmp_path / "out")
    file = File(tmp_path / "x", "", weight.nbytes, size - weight.nbytes)
    quantize.run({"allow_nonfinite": False, "method": {"name": "rtn"}, **item["params"]}, {"w": file}, out)
    words, scales = reference.quantize(weight.T.astype(np.float32), Q4)
    assert (out.folder / "params_shard_0.bin").read_bytes() == words.tobytes() + scales.tobytes()
