"""sensitivity measures what happens when one parameter alone is stored rounded."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_build.architectures.weights import read_map, to_source
from llm_build.quant import reference
from llm_build.quant.layout import parse_scheme
from llm_build.quant.rounding import rounded
from llm_build.steps import sensitivity
from llm_build.steps.dequantized import assemble
from llm_build.verification import heldout, source_model
from tests.e2e.chain import DEMO, Line, line, scheme_of
from tests.matrix.checkpoints import make
from tests.weights.weights_line import FolderOut

TEXT = DEMO / "calibration.txt"
CANDIDATES = ("q3f16_1", "q8f16_1")
SAMPLE = {
    "text": {"name": TEXT.name, "digest": "sha256:" + sha256(TEXT.read_bytes()).hexdigest()}, "tokens": 64, "window": 32
}  # fmt: skip


def measured(made: Line) -> dict[str, dict[str, float]]:
    out = FolderOut(made.folder / "sensitivity", context={"text": str(TEXT)})
    weight_map = made.built.convert.outputs()["weight_map.json"]
    params = {**SAMPLE, "schemes": {name: scheme_of(name) for name in CANDIDATES}}
    sensitivity.run(params, {**made.reference_inputs(), "weight_map": weight_map}, out)
    found: dict[str, dict[str, float]] = json.loads(out.path("sensitivity.json").read_text())["losses"]
    return found


def direct(made: Line, name: str, use: str) -> float:
    """The loss of one parameter by the whole model, with that parameter packed by the slow reference."""
    inputs = made.reference_inputs()
    layout = json.loads(inputs["layout"].path.read_text())["tensors"]
    entries = read_map(json.loads(made.built.convert.outputs()["weight_map.json"].path.read_text())).entries
    config = json.loads(inputs["config"].path.read_text())

    def read(tensor: str) -> np.ndarray:
        file, entry = inputs["tensors"][f"tensor/{tensor}"], layout[tensor]
        return source_model.read(file, entry["dtype"], entry["shape"]).numpy()

    def logits(arrays: dict[str, np.ndarray]) -> torch.Tensor:
        tensors = to_source(entries, arrays)
        model = source_model.load(
            config, {k: list(v.shape) for k, v in tensors.items()}, lambda k: source_model.as_tensor(tensors[k]), tick
        )
        return torch.from_numpy(source_model.logits(model, tokens, 1))

    tokens = heldout.windows({**SAMPLE, "logits_bytes": 1 << 30}, TEXT, inputs["tokenizer"], config)
    arrays = {entry.name: assemble(entry, read) for entry in entries}
    rule = parse_scheme(scheme_of(use))
    packed = reference.quantize(arrays[name], rule)
    changed = arrays | {name: reference.dequantize(packed[0], packed[1], arrays[name].shape[1], rule)}
    return sensitivity.divergence(logits(arrays), logits(changed))


def tick(*_: Any) -> None:
    return None


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("gpt_neox", ["gpt_neox.layers.1.attention.qkv_proj.weight", "embed_out.weight"]),
        ("gemma2", ["model.embed_tokens.weight", "model.layers.0.self_attn.qkv_proj.weight"]),
    ],
)
def test_loss_is_that_of_the_whole_model(family: str, names: list[str], tmp_path: Path) -> None:
    """Rows of several heads in another order; a scaled embedding that is the head too."""
    made = line(make(family, tmp_path / "checkpoint"), "q4f16_1", tmp_path)
    losses = measured(made)
    kinds = {entry["name"]: entry["kind"] for entry in json.loads(map_of(made))["parameters"]}
    assert set(losses) == {name for name, kind in kinds.items() if kind in ("linear", "head", "embedding")}
    for name in names:
        assert losses[name]["q3f16_1"] == pytest.approx(direct(made, name, "q3f16_1"), rel=1e-3)
        assert losses[name]["q8f16_1"] == pytest.approx(direct(made, name, "q8f16_1"), rel=0.5)


def map_of(made: Line) -> str:
    return made.built.convert.outputs()["weight_map.json"].path.read_text()


def test_rounding_is_what_the_reference_stores() -> None:
    weight = np.random.default_rng(0).normal(size=(300, 1000)).astype(np.float32)
    for name in ("q3f16_1", "q4f16_0", "q8f16_1", "e4m3_f16"):
        rule = parse_scheme(scheme_of(name))
        packed = reference.quantize(weight[:3], rule)
        assert np.array_equal(rounded(weight, rule)[:3], reference.dequantize(packed[0], packed[1], 1000, rule))
