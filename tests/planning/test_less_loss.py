"""What would lose less than a scheme: the same bytes by another method, or more bits."""

from __future__ import annotations

import pytest

from llm_build.app.advice import command_with
from llm_build.config.choices import find_folders
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes.less_loss import identity, ways
from llm_build.quant.methods.gains import MEASURED
from tests.planning.test_cpu import recipe_of


def test_methods_come_first_with_their_share_of_the_loss():
    recipe = recipe_of("quant=q4f16_1")
    found = {way.change: way for way in ways(recipe)}
    assert next(iter(found)) == "quant.method=gptq"
    assert found["quant.method=gptq"].share == pytest.approx((0.5, 0.77), abs=0.01)
    assert found["quant.method=gptq"].bits == pytest.approx(4.51, abs=0.01)
    assert [way.more for way in found.values()] == [False, False, True, True]
    assert found["quant=q8f16_1"].bits == pytest.approx(8.5, abs=0.01)
    assert found["quant=q8f16_1"].share[1] < 0.01
    assert found["quant.method=awq"].share == pytest.approx((0.49, 1.0), abs=0.01)  # no gain on one of the models
    assert all(way.share[0] <= 0.9 and way.share[1] < 1 for way in found.values())


def test_rtn_is_told_of_mse_and_gptq_of_more_bits_alone():
    assert "quant.method=mse" in [way.change for way in ways(recipe_of("quant=q4f16_1", "quant.method=rtn"))]
    best = [way.change for way in ways(recipe_of("quant=q4f16_1", "quant.method=gptq"))]
    assert best == ["quant=q6f16_1", "quant=q8f16_1"]
    assert "quant=q8f32_1" in [way.change for way in ways(recipe_of("quant=q4f32_1"))]


@pytest.mark.parametrize("scheme", ["q8f16_1", "q0f16", "q4f16_zp32", "w8a8", "e4m3_f16", "q6f16_1"])
def test_nothing_is_said_where_nothing_better_is_known(scheme: str):
    assert ways(recipe_of(f"quant={scheme}")) == []


@pytest.mark.parametrize("scheme", ["q3f16_1", "q4f16_1", "q4f32_1"])
def test_schemes_of_more_bits_are_the_shipped_choices(scheme: str):
    """So that a result in the store is known as theirs."""
    found = [way for way in ways(recipe_of(f"quant={scheme}")) if way.change.startswith("quant=")]
    assert found
    for way in found:
        table = schemes.table_of_choice(way.change.removeprefix("quant="), find_folders())
        assert identity(way.quant) == {"scheme": table, "method": "mse"}


def test_the_command_is_the_one_that_was_typed_with_the_change():
    typed = ("model=auto", "model.source='/a b'", "quant=q4f16_1", "quant.group_size=64", "name=x", "target=cpu")
    kept = "build model=auto 'model.source='\"'\"'/a b'\"'\"''"
    assert command_with(typed, "quant=q8f16_1") == f"{kept} target=cpu quant=q8f16_1"
    assert command_with(("quant=q4f16_1", "quant.method=rtn", "++verify.tokens=64"), "quant.method=gptq") == (
        "build quant=q4f16_1 verify.tokens=64 quant.method=gptq"
    )


def test_every_measured_model_has_the_default():
    assert all(("q4f16_1", "mse") in loss for loss in MEASURED.values())
