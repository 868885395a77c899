"""A model whose residual stream is 24,350 at the first position, as SmolLM2's is, and falls to 37 in the last layer:
what is lost beside the large value shows in the logits. Every way through the library is as exact as transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tvm import family_line, tiny
from tests.tvm.test_families import PATHS, SMALL

CHANNEL, HIGH, LOW = 5, 24_350.0, 37.0
FIRST = [int(np.random.default_rng(seed).integers(0, SMALL["vocab_size"], 1)[0]) for seed in (1, 2)]  # of family_line
MARGIN = 5  # times transformers' own rounding; found: up to 2.5


def raise_the_stream(model: Any) -> None:
    """The embedding of the first tokens makes it; one input of the last MLP, which only it drives, takes it away."""
    embedding, last = model.model.embed_tokens.weight, model.model.layers[-1].mlp
    embedding[FIRST, CHANNEL] = HIGH
    for projection in (last.gate_proj, last.up_proj):
        projection.weight[0] = 0
        projection.weight[0, CHANNEL] = 2
    last.down_proj.weight[CHANNEL] = 0
    seen: list[torch.Tensor] = []
    handle = last.down_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(torch.tensor([FIRST[:1]]))
    handle.remove()
    last.down_proj.weight[CHANNEL, 0] = (LOW - HIGH) / seen[0][0, 0, 0]


def stream_of(built: family_line.Built, tokens: list[int]) -> list[float]:
    """The largest value of the first position after each layer."""
    hidden = built.model(torch.tensor([tokens]), use_cache=False, output_hidden_states=True).hidden_states
    return [float(layer[0, 0].abs().max()) for layer in hidden]


@pytest.mark.parametrize("scheme", ["q0f32", "q0f16", "q4f16_1"])
def test_every_path_is_as_exact_as_transformers(scheme: str, tmp_path: Path):
    built = family_line.build(tmp_path, "llama", SMALL, tiny.SCHEMES[scheme], change=raise_the_stream)
    with torch.no_grad():
        stream = stream_of(built, FIRST[:1])
        assert max(stream) == pytest.approx(HIGH, rel=0.01)
        tokens = np.random.default_rng(1).integers(0, SMALL["vocab_size"], family_line.TOKENS).tolist()
        rounded = built.expected(tokens)
        built.model.double()
        exact = built.expected(tokens)
    own = float(np.abs(rounded - exact).max() / exact.std())
    found = family_line.errors(built, SMALL["vocab_size"])
    print({way: f"{error / own:.1f}" for way, error in found.items()}, f"{own:.1e}")
    assert set(found) == PATHS
    assert max(found.values()) < MARGIN * own, (found, own)
    assert own < 1e-3
