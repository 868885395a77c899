"""Checkpoints that others have quantized, taken over: exactly, or refused by name."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.config.schema import Quant
from llm_build.core.errors import UserError
from llm_build.formats import quantized as quantized_formats
from llm_build.formats.quantized import known_keys
from llm_build.planner import sources
from llm_build.planner.schemes import imported, schemes
from llm_build.quant import reference
from llm_build.quant.layout import parse_scheme
from llm_build.quant.storage import widen
from llm_build.verification import quantized, reconstruction
from tests.conftest import ROOT
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


def test_the_guide_lists_every_key() -> None:
    guide = (ROOT / "docs" / "guides" / "import.md").read_text("utf-8")
    for method, table in known_keys.TABLES.items():
        row = next(line for line in guide.splitlines() if line.startswith(f"| {method} | `"))
        assert set(re.findall(r"`(\w+)`", row)) == set(table), method


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
HADAMARD = {"config_groups": {"R1": {"type": "hadamard", "apply": [{"location": "input", "targets": ["Linear"]}]}}}
HARMLESS = {
    "awq": {"modules_to_not_convert": ["lm_head"], "do_fuse": False, "exllama_config": {"version": 2}},
    "gptq_sym": {
        "damp_percent": 0.01, "static_groups": False, "meta": {"quantizer": ["gptqmodel:4.0"]}, "lm_head": False,
        "pack_dtype": "int32", "rotation": None, "is_marlin_format": False, "something_new": None,
    },
    "packed_group": {
        "sparsity_config": {"format": "dense", "sparsity_structure": "unstructured"}, "transform_config": {},
        "kv_cache_scheme": None, "quantization_status": "compressed", "version": "0.9", "global_compression_ratio": 1.4,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", HARMLESS)
def test_values_that_change_nothing_are_accepted(name: str) -> None:
    config = made.tiny(name)[2]
    plain = quantized_formats.describe(config)
    assert plain is not None
    config["quantization_config"] = {**config["quantization_config"], **HARMLESS[name]}
    assert quantized_formats.describe(config) == plain


@pytest.mark.parametrize("name", FORMATS)
def test_any_key_that_nobody_knows_is_refused_by_its_name(name: str) -> None:
    """At each level of quantization_config."""
    config = made.tiny(name)[2]["quantization_config"]
    places = [config]
    if "config_groups" in config:
        places += [config["config_groups"]["group_0"], config["config_groups"]["group_0"]["weights"]]
    for place in places:
        place["unheard_of"] = 1
        with pytest.raises(UserError, match=r"quantization_config\.(\S+\.)?unheard_of is 1"):
            quantized_formats.describe({"quantization_config": config})
        del place["unheard_of"]
    assert quantized_formats.describe({"quantization_config": config})


@pytest.mark.parametrize(
    ("name", "tensors", "config", "said"),
    [
        ("awq", {f"{Q}.qzeros": None}, {}, f"{Q}.qzeros is missing"),
        ("awq", {f"{Q}.scales": ("F16", np.ones((3, 64), np.float16))}, {}, r"F16 \[3, 64\]; expected.*\[2, 64\]"),
        ("awq", {f"{Q}.qweight": ("F32", np.ones((64, 8), np.float32))}, {}, "expected: I32 a matrix"),
        ("awq", {}, {"group_size": 64}, "not whole groups of 64"),
        ("awq", {}, {"version": "gemv"}, "version is 'gemv'; allowed: gemm"),
        ("awq", {}, {"zero_point": False}, "zero_point is False; allowed: true"),
        ("awq", {}, {"quant_method": "bitsandbytes"}, "'bitsandbytes'; quant=imported reads awq, gptq, compr"),
        ("gptq_sym", {}, {"bits": 3}, "bits is 3; allowed: 4, 8"),
        ("gptq_sym", {}, {"dynamic": {r"+:.*\.down": {"bits": 8}}}, "dynamic"),
        ("gptq_sym", {f"{Q}.g_idx": ("I32", np.arange(64, dtype=np.int32)[::-1] // 32)}, {}, "order of their act"),
        ("gptq_sym", {}, {"checkpoint_format": "gptq_v2"}, "sym is true, but qzeros has a zero point of 7"),
        ("gptq_asym", {f"{Q}.qzeros": ("I32", np.full((2, 8), -1, np.int32))}, {}, "qzeros stores 15"),
        ("packed_group", {f"{Q}.weight_g_idx": ("I32", np.zeros(64, np.int32))}, {}, "another order"),
        ("packed_group", {}, {"format": "marlin-24"}, "format is 'marlin-24'; allowed"),
        ("packed_group", {}, {"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ("packed_group", {}, {"kv_cache_scheme": -1}, "kv_cache_scheme is -1; allowed: null"),
        ("packed_group", {}, {"config_groups": -1}, "config_groups is -1; allowed: a mapping"),
        ("packed_group", {}, {"config_groups": {"group_0": 3}}, "config_groups.group_0 is 3; allowed: a mapping"),
        ("packed_group", {}, {"transform_config": HADAMARD}, "transform_config is .*; allowed: null"),
        ("packed_group", {}, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config is .*dense"),
        ("packed_group", {}, {"online_rotation": True}, "online_rotation is True; allowed: null"),
        ("gptq_sym", {}, {"rotation": "hadamard"}, "rotation is 'hadamard'; allowed: null, false"),
        ("gptq_sym", {}, {"adapter": {"rank": 4}}, "adapter is"),
        ("gptq_sym", {}, {"dynamic": 3}, "dynamic is 3; allowed: a mapping"),
        ("gptq_sym", {}, {"is_marlin_format": True}, "is_marlin_format is True"),
        ("awq", {}, {"smooth_inputs": [1]}, r"smooth_inputs is \[1\]"),
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


def test_formats_that_nothing_here_reads_are_named_whatever_the_scheme(tmp_path: Path) -> None:
    """MLX writes ``quantization``, and the same as quantization_config without a method."""
    held, _, config = made.tiny("awq")
    mlx = {"group_size": 64, "bits": 4}
    q4 = Quant(name="q4f16_1", method="rtn", kind="group", bits=4, group_size=32)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"quantization": mlx}, r"quantized by MLX \(4 bits in groups of 64\)"),
        ({"quantization": mlx, "quantization_config": mlx}, "quantized by MLX"),
        ({"quantization_config": {"quant_method": "hqq"}}, "quant_method 'hqq'; quant=imported reads awq"),
        ({"quantization_config": {"bits": 4}}, "no quant_method; quant=imported reads awq"),
        ({"quantization_config": [4]}, "no quant_method"),
    )
    for number, (extra, words) in enumerate(cases):
        folder = tmp_path / str(number)
        made.put(folder, held, {k: v for k, v in config.items() if k != "quantization_config"} | extra)
        for quant in (QUANT, q4):
            with pytest.raises(UserError, match=words) as caught:
                imported.check(quant, sources.checkpoint_at("folder", "", folder))
            assert "the checkpoint that it was made from" in caught.value.hint


def test_an_empty_quantization_config_is_none(tmp_path: Path) -> None:
    held, _, config = made.tiny("awq")
    made.put(tmp_path / "source", held, {**config, "quantization_config": {}})
    checkpoint = sources.checkpoint_at("folder", "", tmp_path / "source")
    imported.check(Quant(name="q4f16_1", method="rtn", kind="group", bits=4, group_size=32), checkpoint)
    with pytest.raises(UserError, match="the checkpoint is not quantized"):
        imported.check(QUANT, checkpoint)
    assert quantized_formats.describe(checkpoint.config) is None


BIASES = {f"model.layers.{layer}.{name}.bias": outputs for layer in range(2) for name, outputs in (
    ("self_attn.q_proj", 64), ("mlp.down_proj", 64),
)}  # fmt: skip


@pytest.mark.parametrize("name", ["gptq_sym", "gptq_v2", "awq"])
def test_biases_of_zeros_that_the_model_has_no_use_for_are_left_out(tmp_path: Path, name: str) -> None:
    """GPTQ's tools write a bias for every module."""
    weights = made.write(tmp_path / "plain", name)
    plain = build(tmp_path / "plain", tmp_path / "a")[1].arrays()
    zeros = {bias: ("F16", np.zeros(outputs, np.float16)) for bias, outputs in BIASES.items()}
    _, built = build(changed(tmp_path, name, zeros), tmp_path / "b")
    assert [warning for warning in built.convert.warnings if "no use for 4 biases" in warning]
    assert {key: array.tobytes() for key, array in built.arrays().items()} == {k: a.tobytes() for k, a in plain.items()}
    layout, config = built.fetch.json("layout.json")["tensors"], built.fetch.json("file/config.json")
    _, fetch = quantized.open_checkpoint(config, layout, built.fetch.outputs("tensor/"))
    assert np.array_equal(fetch(f"{Q}.weight").numpy(), weights[f"{Q}.weight"])


def test_a_bias_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    bias = np.zeros(64, np.float16)
    bias[3] = 0.5
    with pytest.raises(UserError, match=rf"{Q}\.bias is not 0 \(0\.5 is in it\)"):
        build(changed(tmp_path, "gptq_sym", {f"{Q}.bias": ("F16", bias)}), tmp_path / "work")
