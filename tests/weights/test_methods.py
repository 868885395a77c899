"""quant.method: mse against a slow search of its own, gptq against the paper's algorithm without its short cuts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from llm_build.architectures.weights import Entry, Parameter, whole
from llm_build.core.errors import UserError
from llm_build.core.step_io import File
from llm_build.quant import pack, reference, storage
from llm_build.quant.layout import Scheme
from llm_build.quant.methods import METHODS, Method, prepare
from llm_build.quant.methods.gptq import upper_factor
from llm_build.quant.methods.mse import STEPS
from llm_build.steps import calibrate, shard
from llm_build.verification import reconstruction
from tests.weights.weights_line import (
    ARCHITECTURE,
    FolderOut,
    group_scheme,
    run_fetch,
    run_weights,
    source_tensors,
    write_checkpoint,
)

Q4, Q3 = group_scheme("q4f16_1"), group_scheme("q3f16_1", bits=3, group_size=40)
SCHEMES = [
    Q4, Q3, group_scheme("q4f32_1", dtype="float32"), group_scheme("q4bf16_1", dtype="bfloat16"),
    group_scheme("q8f16_1", bits=8), group_scheme("q2", bits=2, group_size=16),
]  # fmt: skip


def rounded(weight: np.ndarray, scheme: Scheme, method: Method | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(dequantized, words, scales) of a float32 matrix."""
    outputs, inputs = weight.shape
    groups = -(-inputs // scheme.group_size)
    words = np.empty((outputs, groups * scheme.words_per_group), np.uint32)
    scales = np.empty((outputs, groups), storage.NUMPY_DTYPE[scheme.dtype])
    packer = pack.Packer(outputs, inputs, "F32", scheme, method)
    packer.pack(weight.view(np.uint32), words, scales)
    return reference.dequantize(words, scales, inputs, scheme), words, scales


def weights(outputs: int = 12, inputs: int = 100, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_t(4, (outputs, inputs)).astype(np.float32) * np.float32(0.02)
    values[3, :40] = 0
    values[4] *= np.float32(1e-7)  # scales below the smallest float16
    return values


def slow_scale(values: np.ndarray, scheme: Scheme) -> float:
    """The scale of one group, as the module's docstring describes it, in float64 but for the scales themselves."""
    largest = values[np.abs(values).argmax()]
    turned, peak = values.astype(np.float64) * (-1 if largest < 0 else 1), np.float32(abs(largest))
    best, chosen = np.inf, 0.0
    for divisor in (scheme.max_int, *(scheme.max_int + steps for steps in STEPS)):
        held, _ = storage.scales(np.array([peak / np.float32(divisor)], np.float32), scheme.dtype)
        scale = float(storage.widen(held, scheme.dtype)[0])
        if scale == 0:
            continue
        levels = np.clip(np.rint(turned / scale), -scheme.max_int, scheme.max_int + 1)
        if (error := float(np.square(levels * scale - turned).sum())) < best * (1 - 1e-6):
            best, chosen = error, scale
    return chosen * (-1 if largest < 0 else 1)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_mse_finds_the_scales_of_a_slow_search(scheme: Scheme) -> None:
    source = weights()
    _, _, scales = rounded(source, scheme, prepare("mse", scheme, None, 0))
    found = storage.widen(scales, scheme.dtype)
    for row in range(len(source)):
        for group in range(scales.shape[1]):
            some = source[row, group * scheme.group_size : (group + 1) * scheme.group_size]
            assert found[row, group] == pytest.approx(slow_scale(some, scheme), rel=1e-6, abs=0), (row, group)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_mse_is_never_worse_than_rtn_and_uses_the_last_value(scheme: Scheme) -> None:
    source = weights(64, 160, seed=1)
    nearest, _, _ = rounded(source, scheme, None)
    chosen, words, scales = rounded(source, scheme, prepare("mse", scheme, None, 0))
    squares = [np.square(found - source).reshape(64, -1, 8).sum(axis=2).sum(axis=1) for found in (nearest, chosen)]
    assert (squares[1] <= squares[0] * 1.00001).all()
    assert squares[1].sum() < squares[0].sum()
    last = (1 << scheme.bits) - 1
    stored = [(words >> np.uint32(scheme.bits * place)) & np.uint32(last) for place in range(scheme.per_word)]
    assert (np.stack(stored) == last).any()
    assert (storage.widen(scales, scheme.dtype) < 0).any()


def test_mse_is_the_same_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "source", source_tensors())
    whole = run_weights(folder, tmp_path / "x", ARCHITECTURE, asdict(Q4), method="mse").arrays()
    monkeypatch.setattr("llm_build.quant.pack.BLOCK_WEIGHTS", 300)
    monkeypatch.setattr("llm_build.quant.methods.mse.CHUNK_WEIGHTS", 64)
    small = run_weights(folder, tmp_path / "y", ARCHITECTURE, asdict(Q4), method="mse", max_shard_bytes=700).arrays()
    assert all(np.array_equal(whole[name], small[name]) for name in whole)
    nearest = run_weights(folder, tmp_path / "z", ARCHITECTURE, asdict(Q4)).arrays()
    changed = {name for name in whole if not np.array_equal(whole[name], nearest[name])}
    assert changed == {name for name in whole if name.endswith((".q_weight", ".q_scale"))}


def test_nonfinite_weights_become_zero() -> None:
    source = weights()
    source[0, 5], source[1, 50] = np.nan, -np.inf
    found, _, _ = rounded(source, Q4, prepare("mse", Q4, None, 0))
    assert found[0, 5] == found[1, 50] == 0
    assert np.abs(found - source)[2].max() < 0.05


def moments(inputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated inputs (T, in) and their second moments, as calibrate writes them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, 12)) @ rng.standard_normal((12, inputs)) + 0.3 * rng.standard_normal((400, inputs))
    return x, (x.T @ x / len(x)).astype(np.float32)


def test_the_factor_is_the_papers() -> None:
    _, moment = moments(60)
    factor = upper_factor(moment, 0.01).astype(np.float64)
    damped = moment.astype(np.float64) + 0.01 * np.diag(moment).mean() * np.eye(60)
    assert np.array_equal(factor, np.triu(factor))
    np.testing.assert_allclose(factor.T @ factor @ damped, np.eye(60), atol=1e-4)
    np.testing.assert_array_equal(upper_factor(np.zeros((4, 4), np.float32), 0.01), 10 * np.eye(4, dtype=np.float32))


def paper(weight: np.ndarray, moment: np.ndarray, damping: float, scales: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Optimal brain quantization in a fixed order (equations 2 and 3 of arXiv:2210.17323), in float64: no Cholesky
    factor, no batches; the inverse shrinks by one input after each. The scales are given."""
    moved, inverse = (
        weight.astype(np.float64),
        np.linalg.inv(moment + damping * np.diag(moment).mean() * np.eye(len(moment))),
    )
    result = np.empty_like(moved)
    for j in range(moved.shape[1]):
        step = scales[:, j // scheme.group_size]
        level = np.clip(np.rint(moved[:, j] / step), -scheme.max_int, scheme.max_int + 1)
        result[:, j] = level * step
        moved[:, j:] -= np.outer((moved[:, j] - result[:, j]) / inverse[0, 0], inverse[0])
        inverse = (inverse - np.outer(inverse[:, 0], inverse[0]) / inverse[0, 0])[1:, 1:]
    return result


@pytest.mark.parametrize("scheme", [Q4, Q3], ids=lambda scheme: scheme.name)
def test_gptq_is_the_papers_algorithm(scheme: Scheme) -> None:
    source = np.random.default_rng(3).standard_normal((16, 100)).astype(np.float32)
    inputs, moment = moments(100)
    found, _, scales = rounded(source, scheme, prepare("gptq", scheme, moment, 0.01))
    expected = paper(source, moment, 0.01, storage.widen(scales, scheme.dtype).astype(np.float64), scheme)
    assert np.mean(np.abs(found - expected) < 1e-4) > 0.99  # a tie broken otherwise moves what comes after it
    error = {
        name: np.square(inputs @ (rounded(source, scheme, prepare(name, scheme, moment, 0.01))[0] - source).T).sum()
        for name in METHODS
    }
    assert error["gptq"] < 0.4 * error["mse"]


def test_gptq_without_correlations_is_mse() -> None:
    source = weights()
    plain = rounded(source, Q4, prepare("mse", Q4, None, 0))
    for moment in (np.eye(100, dtype=np.float32), None):
        for one, two in zip(plain, rounded(source, Q4, prepare("gptq", Q4, moment, 0.01)), strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
def test_what_verify_asks_of_each_method(scheme: Scheme) -> None:
    source = weights(24, 120, seed=2)
    found, _, scales = rounded(source, scheme, prepare("mse", scheme, None, 0))
    assert reconstruction.grouped(source, found, scales, scheme, "mse").good
    assert not reconstruction.grouped(source, found, scales, scheme, "rtn").good
    wrong = found.copy()
    wrong[7, 33] += 1.2 * abs(storage.widen(scales, scheme.dtype)[7, 33 // scheme.group_size])
    report = reconstruction.grouped(source, wrong, scales, scheme, "mse")
    assert (report.good, report.row) == (False, 7)
    assert reconstruction.grouped(source, wrong, scales, scheme, "gptq").good
    small = scales.copy()
    small[5, 1] = storage.narrow(storage.widen(small[5:6, 1], scheme.dtype) * np.float32(0.1), scheme.dtype)[0]
    report = reconstruction.grouped(source, found, small, scheme, "mse")
    assert (report.good, report.row) == (False, 5)


def run_calibrate(folder: Path, work: Path, **params: int) -> FolderOut:
    """calibrate over random tokens: the tiny checkpoint has no tokenizer."""
    built = run_weights(folder, work / "weights", ARCHITECTURE, asdict(group_scheme("q4f32_1", dtype="float32")))
    fetched, out = run_fetch(folder, work).outputs(), FolderOut(work / "calibrate", context={"text": "unread"})
    inputs: dict[str, File | dict[str, File]] = {
        "tensors": {name: file for name, file in fetched.items() if name.startswith("tensor/")},
        "layout": fetched["layout.json"],
        "config": fetched["file/config.json"],
        "weight_map": built.convert.outputs()["weight_map.json"],
    }
    calibrate.run({"text": {"name": "", "digest": ""}, "tokens": 256, "window": 64, **params}, inputs, out)
    return out


def test_calibrate_measures_what_each_layer_reads(tmp_path: Path) -> None:
    import torch
    import transformers

    folder = write_checkpoint(tmp_path / "source", source_tensors("F32"))
    out = run_calibrate(folder, tmp_path / "one")
    assert out.warnings == ["the checkpoint has no tokenizer.json: calibrated on random tokens, which is worth little"]
    stems = [f"model.layers.{i}.{n}" for i in (0, 1) for n in ("self_attn.qkv_proj", "self_attn.o_proj")]
    stems += [f"model.layers.{i}.mlp.{n}" for i in (0, 1) for n in ("gate_up_proj", "down_proj")]
    assert out.written == {f"moments/{stem}.weight" for stem in [*stems, "lm_head"]}
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = np.random.default_rng(20).integers(0, 96, (4, 64))
    seen = {}
    for name in ("model.layers.1.mlp.down_proj", "model.layers.0.self_attn.k_proj", "lm_head"):
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, n=name: seen.update({n: x[0]}))
    with torch.inference_mode():
        model(torch.from_numpy(tokens))
    parameters = ("model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.down_proj", "lm_head")
    for module, parameter in zip(seen, parameters, strict=True):
        x = seen[module].reshape(256, -1).double().numpy()
        found = np.load(out.folder / f"moments/{parameter}.weight")
        expected = x.T @ x / 256
        expected += np.eye(len(expected)) * len(expected) / 256 * np.diag(expected).mean()  # as many tokens of noise
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(x).max() ** 2)
    again = run_calibrate(folder, tmp_path / "two")
    assert all((out.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in out.written)


def test_an_item_reads_the_moments_of_its_own_matrices_only(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "source", source_tensors())
    built = run_weights(folder, tmp_path / "x", ARCHITECTURE, asdict(Q4))
    weight_map, out = built.convert.outputs()["weight_map.json"], FolderOut(tmp_path / "shard")
    params = {"scheme": asdict(Q4), "max_shard_bytes": 6000, "moments": True, "scales": False}
    shard.run(params, {"weight_map": weight_map}, out)
    items = out.json("shards.json")["items"]
    read = [[port for port in item["inputs"] if port.startswith("moments/")] for item in items]
    assert max(map(len, read)) < 9 // 2
    for item, ports in zip(items, read, strict=True):
        kinds = {f"moments/{parameter['name']}": parameter["kind"] for parameter in item["params"]["parameters"]}
        assert sorted(ports) == sorted(port for port, kind in kinds.items() if kind in ("linear", "head"))
        assert all(item["inputs"][port] == ["moments", port] for port in ports)


def test_calibrate_says_what_it_cannot_do(tmp_path: Path) -> None:
    matrix = Parameter("a.experts.weight", (2, 1), "linear")
    entry = Entry(matrix, "copy", (whole("a.experts.0.weight", (2, 1)),))
    with pytest.raises(UserError, match=r"no layer of its own for a\.experts\.weight") as error:
        calibrate.readers([entry], {})
    assert "quant.method=mse" in error.value.hint
    experts = Entry(matrix, "stack", (whole("x", (1, 1)), whole("y", (1, 1))))
    with pytest.raises(UserError, match="no layer of its own"):
        calibrate.readers([experts], {"a.experts.0.up.weight": "x", "a.experts.1.up.weight": "y"})
    assert calibrate.readers([experts], {"a.up.weight": "x", "a.gate.weight": "y"}) == {"a.up": ["a.experts.weight"]}
    folder = write_checkpoint(tmp_path / "source", source_tensors())
    with pytest.raises(UserError, match=r"quant\.calibration has 20 tokens in windows of 10"):
        run_calibrate(folder, tmp_path, tokens=20)
    loud = source_tensors("F32")
    loud["model.norm.weight"][1][:] = 1e30
    with pytest.raises(UserError, match=r"the input of lm_head\.weight holds NaN or infinity"):
        run_calibrate(write_checkpoint(tmp_path / "loud", loud), tmp_path / "loudly")
