"""Schemes that round inputs, at plan time: what they are refused for, and what they share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llm_build.architectures.weights import Parameter
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.errors import UserError
from llm_build.planner import resolve
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes import verify_limits as limits_of_verify
from llm_build.quant.layout import parse_scheme
from llm_build.steps import shard

FOLDERS = find_folders()
MIXTURE = (
    Parameter("model.layers.0.self_attn.o_proj.weight", (64, 64), "linear"),
    Parameter("model.layers.0.mlp.gate.weight", (4, 64), "router"),
    Parameter("model.layers.0.mlp.down_proj.weight", (256, 64), "linear"),
)


def recipe(*words: str) -> Any:
    return resolve.resolve(compose.compose([*words], None), FOLDERS)


@pytest.mark.parametrize("name", ["w8a8", "e4m3_e4m3_f16", "e5m2_e5m2_f16"])
def test_experts_are_refused_by_name(name: str):
    found = parse_scheme(schemes.table_of_choice(name, FOLDERS))
    with pytest.raises(UserError, match=rf"{name} rounds the inputs .*: model.layers.0.mlp.down_proj.weight; a rule"):
        schemes.check_can_pack(found, MIXTURE)
    schemes.check_can_pack(found, MIXTURE[:1])
    rule = {"match": ["*.down_proj"], "layers": None, "use": schemes.table_of_choice("q8f16_1", FOLDERS)}
    schemes.check_can_pack(parse_scheme({**schemes.table_of_choice(name, FOLDERS), "rules": [rule]}), MIXTURE)


def test_the_exact_limits_are_those_of_what_is_rounded():
    """Also when only a rule rounds; never lower than what the recipe asks for."""
    plain = limits_of_verify.limits_of(recipe("quant=q8f16_1"), {"name": "q8f16_1", "kind": "group", "bits": 8})
    assert (plain["exact_max"], plain["exact_rms"]) == (1e-4, 1e-5)
    made = recipe("quant=w8a8")
    limits = made.verify.exact_rounded["int8"]
    found = limits_of_verify.limits_of(made, schemes.scheme_of(made.quant))
    assert (found["exact_max"], found["exact_rms"]) == (limits.max_error, limits.rms_error)
    ruled = {
        **schemes.table_of_choice("q4f16_1", FOLDERS),
        "rules": [{"use": schemes.table_of_choice("w8a8", FOLDERS)}],
    }
    assert limits_of_verify.limits_of(made, ruled)["exact_max"] == limits.max_error
    loose = replace(made, verify=replace(made.verify, exact_max=7.0))
    assert limits_of_verify.limits_of(loose, ruled)["exact_max"] == 7.0


def test_inputs_are_no_part_of_what_quantize_reads():
    """The weights of a scheme and of the same without an activation are one result."""
    rounding = parse_scheme(schemes.table_of_choice("w8a8", FOLDERS))
    assert shard.packing_of(rounding) == shard.packing_of(replace(rounding, activation="", activation_scale=""))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quant=w8a8", "quant.activation_scale=static"], r"quant.activation_scale .*'static' is not possible"),
        (["quant=w8a8", "quant.activation=e4m3"], r"quant.activation: found 'e4m3' in 'w8a8'; allowed: '', 'int8'"),
        (["quant=w8a8", "quant.method=gptq"], r"gptq chooses integers of groups; w8a8 has none"),
        (["quant=q4f16_1", "quant.activation=int8"], r"quant.activation: found 'int8' in 'q4f16_1'"),
    ],
)
def test_wrong_recipes(words: list[str], message: str):
    with pytest.raises(UserError, match=message):
        recipe(*words)
