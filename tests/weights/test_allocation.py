"""Which scheme each parameter gets for a budget, and how that is written as rules."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest

from llm_build.quant import rules
from llm_build.quant.allocation import UNITS, choose_options, pattern_of, ranges, rules_of
from llm_build.quant.layout import parse_scheme
from tests.e2e.chain import scheme_of

NAMES = [
    "model.embed_tokens.weight",
    *[f"model.layers.{n}.{place}.weight" for n in range(12) for place in ("self_attn.qkv_proj", "mlp.down_proj")],
    "lm_head.weight",
]


def random_model(seed: int, parameters: int, unit: int) -> list[list[tuple[int, float]]]:
    """Options whose bytes grow and whose losses fall, as schemes' do."""
    random = Random(seed)
    model = []
    for _ in range(parameters):
        weights, harm = random.choice([3, 8, 11]) * unit + random.randrange(unit), random.random() ** 4
        model.append([(weights * bits, harm * 4.0**-bits * random.uniform(0.8, 1.2)) for bits in (3, 4, 6, 8)])
    return model


def taken(model: list[list[tuple[int, float]]], chosen: list[int]) -> tuple[int, float]:
    picked = [options[index] for options, index in zip(model, chosen, strict=True)]
    return sum(nbytes for nbytes, _ in picked), sum(loss for _, loss in picked)


@pytest.mark.parametrize("unit", [1, 1000, 10**7])
def test_never_over_the_room_and_better_with_more_of_it(unit: int) -> None:
    model = random_model(1, 40, unit)
    low, high = (sum(pick(nbytes for nbytes, _ in options) for options in model) for pick in (min, max))
    last = float("inf")
    for step in range(41):
        room = low + (high - low) * step // 40
        chosen = choose_options(model, room)
        nbytes, loss = taken(model, chosen)
        assert nbytes <= room
        assert loss <= last
        assert chosen == choose_options(model, room)
        assert room - nbytes <= max(unit, (high - low) // UNITS) * 60 or set(chosen) == {3}
        last = loss
    assert choose_options(model, 10 * high) == [3] * len(model)


def test_no_choice_is_better() -> None:
    for seed in range(20):
        model = random_model(seed, 6, 5)
        low = sum(options[0][0] for options in model)
        room = low + low // 2
        every = (taken(model, list(chosen)) for chosen in product(range(4), repeat=6))
        best = min(loss for nbytes, loss in every if nbytes <= room)
        assert taken(model, choose_options(model, room))[1] == pytest.approx(best, rel=1e-12)


def test_rules_give_each_parameter_its_scheme() -> None:
    tables = {name: scheme_of(name) for name in ("q3f16_1", "q4f16_1", "q6f16_1", "q8f16_1")}
    random = Random(3)
    for _ in range(10):
        uses = {name: random.choice(list(tables)) for name in NAMES}
        written = rules_of({name: use for name, use in uses.items() if use != "q4f16_1"})
        resolved = rules.resolve(written, NAMES, "float16", lambda name: dict(tables[name]))
        whole = parse_scheme({**tables["q4f16_1"], "rules": resolved})
        assert {name: whole.for_parameter(name).name for name in NAMES} == uses


def test_rules_are_short() -> None:
    uses = {name: "q8f16_1" for name in NAMES if "down_proj" not in name or ".0." in name}
    assert rules_of(uses) == [
        {"match": ["model.embed_tokens", "lm_head"], "use": "q8f16_1"},
        {"match": "model.layers.*.self_attn.qkv_proj", "layers": [[0, 11]], "use": "q8f16_1"},
        {"match": "model.layers.*.mlp.down_proj", "layers": [0], "use": "q8f16_1"},
    ]
    assert ranges([0, 1, 2, 5, 7, 8]) == [[0, 2], 5, [7, 8]]
    assert pattern_of("gpt_neox.layers.10.mlp.dense_4h_to_h.weight") == "gpt_neox.layers.*.mlp.dense_4h_to_h"
