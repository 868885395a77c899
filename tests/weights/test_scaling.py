"""Folds leave every family the model it was; the search of awq; calibration of experts; what quantize makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from llm_build import architectures
from llm_build.architectures.folds import Fold
from llm_build.architectures.weights import read_map, to_source
from llm_build.core.step_io import File
from llm_build.formats import checkpoint
from llm_build.quant import reference
from llm_build.quant.layout import Scheme
from llm_build.quant.methods import awq
from llm_build.steps import calibrate, convert, dequantized, fetch, quantize, scales, shard
from llm_build.verification import reconstruction, source_model
from tests.matrix.checkpoints import FAMILIES, make
from tests.weights.weights_line import FolderOut, group_scheme

Q4, F32 = group_scheme("q4f16_1"), group_scheme("q4f32_1", dtype="float32")
MIXTURES = [name for name in FAMILIES if "num_experts_per_tok" in FAMILIES[name]]


class Line:
    """The steps up to scales on a small random checkpoint, one after the other in this process."""

    def __init__(self, family: str, work: Path) -> None:
        self.work, self.folder = work, make(family, work / "source")
        self.config = json.loads((self.folder / "config.json").read_text())
        found = checkpoint.find(self.folder)
        watch = {n: File(self.folder / n, "", (self.folder / n).stat().st_size) for n in (*found.weights, *found.files)}
        fetched = FolderOut(work / "fetch", watch)
        fetch.run({"format": found.format, "pin": None}, {"watch": watch}, fetched)
        self.files = fetched.outputs()
        self.tensors = {name: file for name, file in self.files.items() if name.startswith("tensor/")}
        module, converted = architectures.load(family), FolderOut(work / "convert")
        architecture = asdict(module.from_hf(self.config))
        convert.run({"family": family, "architecture": architecture}, {"layout": self.files["layout.json"]}, converted)
        self.weight_map, self.map = converted.outputs()["weight_map.json"], read_map(converted.json("weight_map.json"))
        self.entries = {entry.name: entry for entry in self.map.entries}
        self.layout = json.loads(self.files["layout.json"].path.read_text())["tensors"]

    def raw(self, name: str) -> np.ndarray:
        entry = self.layout[name]
        found: np.ndarray = source_model.read(self.tensors[f"tensor/{name}"], entry["dtype"], entry["shape"]).numpy()
        return found

    def source(self, name: str) -> np.ndarray:
        found = self.raw(name)
        if found.ndim == 1:  # transformers starts norms and biases at 1 and 0
            found = found + np.random.default_rng(crc32(name.encode())).normal(0, 0.2, len(found)).astype(np.float32)
        return found

    def logits(self, given: dict[str, File]) -> np.ndarray:
        """transformers over the weights as these columns and rows scale them."""
        arrays = {
            name: dequantized.scaled(entry, dequantized.assemble(entry, self.source), given)
            for name, entry in self.entries.items()
        }
        tensors = to_source(self.map.entries, arrays)
        shapes = {name: entry["shape"] for name, entry in self.layout.items()}
        model = source_model.load(
            self.config, shapes, lambda name: source_model.as_tensor(tensors[name]), lambda *_: None
        )
        tokens = np.random.default_rng(5).integers(0, 3072, (2, 24), dtype=np.int32)
        return source_model.logits(model, tokens, 1)

    def calibrate(self, tokens: int = 2048) -> FolderOut:
        out = FolderOut(self.work / "calibrate", context={"text": "unread"})
        inputs: dict[str, Any] = {
            "tensors": self.tensors, "layout": self.files["layout.json"], "config": self.files["file/config.json"],
            "weight_map": self.weight_map,
        }  # fmt: skip
        calibrate.run({"text": {"name": "", "digest": ""}, "tokens": tokens, "window": 64}, inputs, out)
        return out

    def scales(self, moments: FolderOut, quantization: Scheme) -> FolderOut:
        out = FolderOut(self.work / "scales")
        inputs = {"weight_map": self.weight_map, "tensors": self.tensors, "moments": moments.outputs("moments/")}
        scales.run({"scheme": asdict(quantization)}, inputs, out)
        return out

    def quantize(self, method: str, measured: FolderOut | None, quantization: Scheme) -> list[FolderOut]:
        sharded, items = FolderOut(self.work / f"shard-{method}"), []
        params = {"moments": method == "gptq", "scales": method == "awq"}
        shard.run(
            {"scheme": asdict(quantization), "max_shard_bytes": 1 << 16, **params},
            {"weight_map": self.weight_map}, sharded,
        )  # fmt: skip
        for item in sharded.json("shards.json")["items"]:
            out = FolderOut(self.work / f"{method}-{item['name']}")
            own = {parameter["name"] for parameter in item["params"]["parameters"]}
            read = {
                port.partition("/")[2] for port in item["inputs"] if port.startswith(("columns/", "rows/", "moments/"))
            }
            assert read <= own
            known = self.files | (measured.outputs() if measured else {})
            ports = {port: known[output] for port, (_, output) in item["inputs"].items()}
            how = {"name": method, "damping": 0.01}
            quantize.run({"allow_nonfinite": False, "method": how, **item["params"]}, ports, out)
            items.append(out)
        return items


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_leave_the_model_what_it_was(family: str, tmp_path: Path) -> None:
    line = Line(family, tmp_path)
    out, rng = FolderOut(tmp_path / "random"), np.random.default_rng(1)
    for fold in line.map.folds:
        count = int(scales.channels(fold, line.entries[fold.readers[0]].parameter.shape[1]).max()) + 1
        found = np.exp(rng.uniform(-1.5, 1.5, (fold.blocks, count))).astype(np.float32)
        scales.write(fold, line.entries, found, out)
    plain, scaled = line.logits({}), line.logits(out.outputs())
    assert np.abs(plain - scaled).max() < 2e-4 * plain.std()
    linear = {name for name, entry in line.entries.items() if entry.parameter.kind in ("linear", "head")}
    scaled_names = {name.removeprefix("columns/") for name in out.written if name.startswith("columns/")}
    unscaled = {name.rpartition(".layers.")[2].partition(".")[2] for name in linear - scaled_names}
    assert unscaled == UNSCALED.get(family, set())


UNSCALED = {  # no fold leads into these: their input is a sum, or comes through GELU
    "olmo2": {"self_attn.qkv_proj.weight", "mlp.gate_up_proj.weight"},
    "gpt_neox": {"mlp.dense_4h_to_h.weight"},
}


def test_every_input_is_made_by_the_channel_that_is_divided() -> None:
    heads = Fold(("o",), ("v",), 4, repeats=3)
    assert scales.channels(heads, 24).tolist() == [*range(4)] * 3 + [*range(4, 8)] * 3
    assert scales.channels(replace(heads, width=24, repeats=1), 24).tolist() == [*range(24)]


def outliers(inputs: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and moments of inputs of which a few are large, as in real models."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((600, inputs)) * np.where(np.arange(inputs) % 16 == 3, 30, 1)
    return rng.standard_normal((40, inputs)).astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def test_the_search_lowers_the_error_of_the_outputs() -> None:
    weights_RI, moment = outliers()
    tried = awq.candidates(moment.diagonal())
    assert len(tried) == len(awq.ALPHAS)
    assert (tried[0] == 1).all()
    errors = awq.errors([awq.Part(weights_RI, moment, Q4, 1.0)], tried)
    moved = awq.round_trip(weights_RI * tried[7], Q4).astype(np.float64) / tried[7] - weights_RI
    assert errors[7] == pytest.approx(np.trace(moved @ moment @ moved.T), rel=1e-4)
    assert errors.min() < 0.5 * errors[0]
    assert np.isfinite(awq.candidates(np.zeros(8))).all()


def test_quantize_scales_before_it_rounds(tmp_path: Path) -> None:
    line = Line("gemma2", tmp_path)  # whose norms are 1 + w
    found = line.scales(line.calibrate(256), Q4)
    assert found.facts["folds"] == 8
    assert 4 < found.facts["scaled"] <= 8  # scaling nothing is one of the choices
    items = {piece["name"]: (item, piece) for item in line.quantize("awq", found, Q4) for piece in _records(item)}
    for name, entry in line.entries.items():
        scaled = dequantized.scaled(entry, dequantized.assemble(entry, line.raw), found.outputs())
        if entry.parameter.kind == "norm":
            assert np.array_equal(_stored(*items[name]), scaled.astype(np.float16))
            continue
        stem = name.removesuffix(".weight")
        words, steps = (_stored(*items[f"{stem}.{piece}"]) for piece in ("q_weight", "q_scale"))
        back = reference.dequantize(words, steps, entry.parameter.shape[1], Q4)
        assert reconstruction.grouped(scaled, back, steps, Q4, "awq").good
    norm = "model.layers.1.input_layernorm.weight"
    columns = np.load(found.folder / "columns/model.layers.1.self_attn.qkv_proj.weight")[0]
    assert columns.std() > 0.01
    np.testing.assert_allclose((1 + _stored(*items[norm]).astype(np.float64)) * columns, 1, rtol=1e-6)


def _records(item: FolderOut) -> list[dict[str, Any]]:
    return [piece | {"file": item.json("records.json")["dataPath"]} for piece in item.json("records.json")["records"]]


def _stored(item: FolderOut, piece: dict[str, Any]) -> np.ndarray:
    data = (item.folder / piece["file"]).read_bytes()[piece["byteOffset"] :][: piece["nbytes"]]
    return np.frombuffer(data, {"uint32": np.uint32, "float16": np.float16}[piece["dtype"]]).reshape(piece["shape"])


def seen_by_experts(line: Line, module: str, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What a layer's experts are given by transformers: inputs (T, hidden), and the experts of each token (T, K)."""
    import torch

    shapes = {name: entry["shape"] for name, entry in line.layout.items()}
    model = source_model.load(line.config, shapes, lambda name: source_model.as_tensor(line.raw(name)), lambda *_: None)
    seen: list[Any] = []
    model.get_submodule(module).register_forward_pre_hook(lambda _, x: seen.extend(x[:2]))
    with torch.inference_mode():
        model(torch.from_numpy(tokens))
    return seen[0].double().numpy(), seen[1].numpy()


@pytest.mark.parametrize("family", MIXTURES)
def test_each_expert_is_calibrated_by_its_own_tokens(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line, tokens = Line(family, tmp_path), np.random.default_rng(20).integers(0, 3072, (16, 64))
    x, chosen = seen_by_experts(line, "model.layers.1.mlp.experts", tokens)
    counts = [int((chosen == expert).any(axis=1).sum()) for expert in range(4)]
    monkeypatch.setattr(calibrate, "LEAST_TOKENS", max(counts))
    out = line.calibrate(1024)
    assert re.match(
        rf"[1-7] of 8 experts read fewer than {max(counts)} of the 1024 calibration tokens", out.warnings[1]
    )
    full, stem = int(np.argmax(counts)), "model.layers.1." + MLP[family]
    x_full = x[(chosen == full).any(axis=1)]
    gate, up = (line.raw(tensor).astype(np.float64) for tensor in experts_tensors(line, stem, full))
    hidden = x_full @ gate.T
    inputs = {"gate_up_proj": x_full, "down_proj": hidden / (1 + np.exp(-hidden)) * (x_full @ up.T)}
    for part, rows in inputs.items():
        moments = np.load(out.folder / f"moments/{stem}.{part}.weight")
        expected = rows.T @ rows / 1024
        expected += np.eye(len(expected)) * len(expected) / len(rows) * np.diag(expected).mean()
        np.testing.assert_allclose(moments[full], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
        starved = [expert for expert in range(4) if counts[expert] < max(counts)]
        assert starved
        assert not moments[starved].any()
    compare_methods(line, out, f"{stem}.down_proj.weight", full)


MLP = {"mixtral": "block_sparse_moe", "qwen3_moe": "mlp"}


def experts_tensors(line: Line, stem: str, expert: int) -> list[str]:
    """The gate and the up matrix of one expert, as the checkpoint names them."""
    sources = line.entries[f"{stem}.gate_up_proj.weight"].sources
    return [source.tensor for source in sources[2 * expert : 2 * expert + 2]]


def compare_methods(line: Line, moments: FolderOut, name: str, full: int) -> None:
    """gptq is better than mse where an expert has moments, and the same where it has none."""
    entry, stem = line.entries[name], name.removesuffix(".weight")
    source, stack, found = dequantized.assemble(entry, line.raw), np.load(moments.folder / f"moments/{name}"), {}
    for method in ("mse", "gptq"):
        measured = moments if method == "gptq" else None
        items = {
            piece["name"]: (item, piece) for item in line.quantize(method, measured, Q4) for piece in _records(item)
        }
        words, steps = (_stored(*items[f"{stem}.{piece}"]) for piece in ("q_weight", "q_scale"))
        found[method] = (reference.dequantize(words, steps, entry.parameter.shape[1], Q4) - source).reshape(
            4, -1, source.shape[1]
        )
    for expert in range(4):
        error = {method: float(np.vdot(d[expert] @ stack[expert], d[expert])) for method, d in found.items()}
        if expert == full:
            assert error["gptq"] < 0.95 * error["mse"]
        elif not stack[expert].any():
            assert np.array_equal(found["gptq"][expert], found["mse"][expert])


def test_awq_of_a_mixture_scales_router_and_experts(tmp_path: Path) -> None:
    line = Line("mixtral", tmp_path)
    found = line.scales(line.calibrate(1024), Q4)
    stem = "model.layers.0.block_sparse_moe"
    columns = {
        part: np.load(found.folder / f"columns/{stem}.{part}.weight") for part in ("gate", "gate_up_proj", "down_proj")
    }
    assert np.array_equal(columns["gate"], columns["gate_up_proj"])
    assert columns["down_proj"].shape == (4, 240)
    assert len(np.unique(columns["down_proj"], axis=0)) > 1
