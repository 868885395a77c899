"""Checkpoints that others have quantized, taken over: exactly, or refused by name."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.config.schema import Quant
from builder.core.errors import UserError
from builder.planner import sources
from builder.planner.schemes import imported, schemes
from builder.quant import reference
from builder.quant.layout import parse_scheme
from builder.quant.storage import widen
from builder.verification import quantized, reconstruction
from tests.weights import quantized_checkpoints as made
from tests.weights.quantized_checkpoints import FORMATS, TINY
from tests.weights.weights_line import Built, run_weights

QUANT = Quant(name="imported", method="imported")
FUSED = {"self_attn.qkv_proj": ("q", "k", "v"), "mlp.gate_up_proj": ("gate", "up"), "mlp.down_proj": ("down",)}
ZERO_POINTS = {"awq", "gptq_asym", "gptq_v2", "packed_zeros", "packed_channel"}


def build(folder: Path, work: Path, **options: Any) -> tuple[Quant, Built]:
    checkpoint = sources.checkpoint_at("folder", "", folder)
    imported.check(QUANT, checkpoint)
    quant = imported.imported_quant(QUANT, checkpoint, "llama", TINY)
    table = schemes.scheme_of(quant)
    return quant, run_weights(folder, work, TINY, table, packing=quant.packing, method="imported", **options)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_stored_is_what_the_format_says(tmp_path: Path, name: str) -> None:
    weights = made.write(tmp_path / "source", name)
    quant, built = build(tmp_path / "source", tmp_path / "work", max_shard_bytes=6000)
    assert quant.zero_point == (name in ZERO_POINTS)
    stored, rule = built.arrays(), parse_scheme(schemes.scheme_of(quant))
    for layer in (f"model.layers.{number}" for number in range(2)):
        for fused, parts in FUSED.items():
            block = fused.partition(".")[0]
            expected = np.concatenate([weights[f"{layer}.{block}.{part}_proj.weight"] for part in parts])
            pieces = [stored.get(f"{layer}.{fused}.{piece}") for piece in ("q_weight", "q_scale", "q_zero")]
            found = reference.dequantize(pieces[0], pieces[1], expected.shape[1], rule, pieces[2])
            assert np.array_equal(found, expected), fused
    plain = dict(zip(("dtype", "array"), made.tiny(name)[0]["model.norm.weight"], strict=True))
    assert np.array_equal(widen(stored["model.norm.weight"], quant.dtype), plain["array"].astype(np.float32)) or (
        quant.dtype == "bfloat16"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_the_reference_reads_the_same(tmp_path: Path, name: str) -> None:
    weights = made.write(tmp_path / "source", name)
    _, built = build(tmp_path / "source", tmp_path / "work")
    layout, config = built.fetch.json("layout.json")["tensors"], built.fetch.json("file/config.json")
    shapes, fetch = quantized.open_checkpoint(config, layout, built.fetch.outputs("tensor/"))
    assert {name: list(weight.shape) for name, weight in weights.items()}.items() <= shapes.items()
    assert not [name for name in shapes if not name.endswith("weight")]
    for key, weight in weights.items():
        assert np.array_equal(fetch(key).numpy(), weight), key


def test_a_published_word_of_awq(tmp_path: Path) -> None:
    """Outputs 0 .. 7 with the values 0 .. 7: the word is 0x75316420, as AutoAWQ's order_map packs it."""
    values, ones = np.tile(np.arange(8)[:, None], (1, 8)), np.ones((8, 1))
    found = made.awq("x", values, ones, ones.astype(np.float16))["x.qweight"][1]
    assert set(found.view(np.uint32).reshape(-1)) == {0x75316420}


def changed(tmp_path: Path, name: str, tensors: Any = None, **config: Any) -> Path:
    """A checkpoint with changed tensors ({name: (dtype, array) or None}) or keys of quantization_config."""
    held, _, given = made.tiny(name)
    for key, value in (tensors or {}).items():
        held.pop(key) if value is None else held.update({key: value})
    given["quantization_config"] = {**given["quantization_config"], **config}
    made.put(tmp_path / "source", held, given)
    return tmp_path / "source"


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "tensors", "config", "said"),
    [
        ("awq", {f"{Q}.qzeros": None}, {}, f"{Q}.qzeros is missing"),
        ("awq", {f"{Q}.scales": ("F16", np.ones((3, 64), np.float16))}, {}, r"F16 \[3, 64\]; expected.*\[2, 64\]"),
        ("awq", {f"{Q}.qweight": ("F32", np.ones((64, 8), np.float32))}, {}, "expected: I32 a matrix"),
        ("awq", {}, {"group_size": 64}, "not whole groups of 64"),
        ("awq", {}, {"version": "gemv"}, "version is 'gemv'; allowed: gemm"),
        ("awq", {}, {"zero_point": False}, "zero_point is False; allowed: true"),
        ("awq", {}, {"quant_method": "bitsandbytes"}, "'bitsandbytes'; allowed: awq, gptq, compressed-tensors"),
        ("gptq_sym", {}, {"bits": 3}, "bits is 3; allowed: 4, 8"),
        ("gptq_sym", {}, {"dynamic": {r"+:.*\.down": {"bits": 8}}}, "dynamic"),
        ("gptq_sym", {f"{Q}.g_idx": ("I32", np.arange(64, dtype=np.int32)[::-1] // 32)}, {}, "order of their act"),
        ("gptq_sym", {}, {"checkpoint_format": "gptq_v2"}, "sym is true, but qzeros has a zero point of 7"),
        ("gptq_asym", {f"{Q}.qzeros": ("I32", np.full((2, 8), -1, np.int32))}, {}, "qzeros stores 15"),
        ("packed_group", {f"{Q}.weight_g_idx": ("I32", np.zeros(64, np.int32))}, {}, "another order"),
        ("packed_group", {}, {"format": "marlin-24"}, "format is 'marlin-24'; allowed"),
        ("packed_group", {}, {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("float8", {f"{Q}.weight": ("F8_E4M3", np.full((64, 64), 0x7F, np.uint8))}, {}, "holds NaN"),
    ],
)  # fmt: skip
def test_refusals(tmp_path: Path, name: str, tensors: Any, config: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build(changed(tmp_path, name, tensors, **config), tmp_path / "work")
    assert caught.value.hint


def test_a_fused_parameter_is_quantized_as_a_whole(tmp_path: Path) -> None:
    parts: dict[str, Any] = {f"{Q}.{part}": None for part in ("qweight", "qzeros", "scales")}
    folder = changed(tmp_path, "awq", {**parts, f"{Q}.weight": ("F16", np.zeros((64, 64), np.float16))})
    with pytest.raises(UserError, match=r"qkv_proj.weight is made of .*which is quantized, and .*q_proj.weight"):
        build(folder, tmp_path / "work")


def test_what_is_not_quantized_stays(tmp_path: Path) -> None:
    down = "model.layers.1.mlp.down_proj"
    weight = np.random.default_rng(1).standard_normal((64, 96)).astype(np.float16)
    parts: dict[str, Any] = {f"{down}.{part}": None for part in ("qweight", "qzeros", "scales")}
    quant, built = build(changed(tmp_path, "awq", {**parts, f"{down}.weight": ("F16", weight)}), tmp_path / "work")
    assert [rule["match"] for rule in quant.rules] == [[down]]
    assert not quant.quantize_embedding
    assert not quant.quantize_head
    assert np.array_equal(built.arrays()[f"{down}.weight"], weight)


def test_quantizing_twice_and_importing_nothing_are_refused(tmp_path: Path) -> None:
    made.write(tmp_path / "awq", "awq")
    found = sources.checkpoint_at("folder", "", tmp_path / "awq")
    with pytest.raises(UserError, match=r"quantized already \(awq\).*second rounding error") as caught:
        imported.check(Quant(name="q4f16_1", kind="group"), found)
    assert "quant=imported" in str(caught.value.hint)
    config = json.loads((tmp_path / "awq" / "config.json").read_text())
    del config["quantization_config"]
    plain = shutil.copytree(tmp_path / "awq", tmp_path / "plain")
    (plain / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="choose schemes to round to"):
        imported.check(replace(QUANT, rules=({"match": "*", "use": "q0f16"},)), found)
    with pytest.raises(UserError, match="has no quantization_config"):
        imported.check(QUANT, sources.checkpoint_at("folder", "", plain))


def test_a_checkpoint_that_is_not_downloaded_yet_is_planned_from_its_config(tmp_path: Path) -> None:
    down = "model.layers.1.mlp.down_proj"
    parts: dict[str, Any] = {f"{down}.{part}": None for part in ("qweight", "qzeros", "scales")}
    folder = changed(tmp_path, "awq", {**parts, f"{down}.weight": ("F16", np.zeros((64, 96), np.float16))})
    whole = sources.checkpoint_at("folder", "", folder)
    early = imported.imported_quant(QUANT, replace(whole, missing=("model.safetensors",)), "llama", TINY)
    assert (early.name, early.zero_point, early.rules) == ("q4f16_zp32", True, ())
    late = imported.imported_quant(early, whole, "llama", TINY)
    assert late == imported.imported_quant(QUANT, whole, "llama", TINY)
    assert late.rules


def test_one_weight_that_is_another_is_seen(tmp_path: Path) -> None:
    made.write(tmp_path / "source", "awq")
    quant, built = build(tmp_path / "source", tmp_path / "work")
    stored, rule, name = built.arrays(), parse_scheme(schemes.scheme_of(quant)), "model.layers.0.mlp.down_proj"
    pieces = [stored[f"{name}.{piece}"].copy() for piece in ("q_weight", "q_scale", "q_zero")]
    right = reference.dequantize(pieces[0], pieces[1], 96, rule, pieces[2])
    assert reconstruction.grouped(right, right, pieces[1], rule, "imported").good
    pieces[0][5, 3] ^= 1 << 8
    wrong = reconstruction.grouped(
        right, reference.dequantize(pieces[0], pieces[1], 96, rule, pieces[2]), pieces[1], rule, "imported"
    )
    assert not wrong.good
    assert wrong.row == 5
