"""Strict parsing: every wrong value is refused with its path, what was found and what is allowed."""

from __future__ import annotations

import pytest

from llm_build.config.schema import Model, Pins, Quant, Target
from llm_build.config.strict import nearest_names, parse
from llm_build.core.errors import UserError


@pytest.mark.parametrize(
    ("cls", "data", "path", "said"),
    [
        (Model, {"sorce": "x"}, "model", "model.sorce: unknown key; did you mean source?"),
        (
            Model,
            {"max_batch_size": "4"},
            "model",
            "model.max_batch_size: '4' is not possible; allowed: 1 to 4096, or auto",
        ),
        (Model, {"max_batch_size": True}, "model", "model.max_batch_size: expected a whole number, got true"),
        (Model, {"max_batch_size": 0}, "model", "model.max_batch_size: 0 is not possible; allowed: 1 to 4096, or auto"),
        (Model, {"max_batch_size": 1.5}, "model", "model.max_batch_size: expected a whole number, got 1.5"),
        (Model, {"max_batch_size": None}, "model", "model.max_batch_size: expected a whole number, got null"),
        (Model, {"allow_nonfinite": "yes"}, "model", "model.allow_nonfinite: expected true or false, got 'yes'"),
        (
            Model,
            {"context_window_size": -5},
            "model",
            "model.context_window_size: -5 is not possible; allowed: 1 or more, or auto",
        ),
        (Model, [1], "model", "model: expected a mapping, got [1]"),
        (
            Quant,
            {"kind": "grup"},
            "quant",
            "quant.kind: 'grup' is not possible; allowed: none, group, int8, e4m3, e5m2; did you mean group?",
        ),
        (Target, {"features": "avx"}, "target", "target.features: expected a list, got 'avx'"),
        (Target, {"features": [1]}, "target", "target.features[0]: expected text, got 1"),
        (Pins, {"tools": {"numpy": 2}}, "pins", "pins.tools.numpy: expected text, got 2"),
    ],
)
def test_refusals_name_path_found_and_allowed(cls, data, path, said):
    with pytest.raises(UserError) as error:
        parse(cls, data, path)
    assert error.value.message == said
    assert error.value.exit_code == 2


def test_where_a_value_was_written_is_part_of_the_message():
    with pytest.raises(UserError, match=r"model\.sorce \(in conf/model/x\.yaml\): unknown key"):
        parse(Model, {"sorce": 1}, "model", lambda path: " (in conf/model/x.yaml)")


def test_good_values_arrive_typed_and_defaults_fill_the_rest():
    model = parse(Model, {"source": "demo", "context_window_size": 128}, "model")
    assert (model.source, model.context_window_size, model.max_batch_size) == ("demo", 128, 4)
    assert parse(Target, {"features": ["avx512vnni"]}, "target").features == ("avx512vnni",)


def test_nearest_knows_parts_of_long_names():
    known = ["context_window_size", "conv_template", "source", "max_batch_size"]
    assert nearest_names("contxt", known)[0] == "context_window_size"
    assert nearest_names("sorce", known) == ["source"]
    assert nearest_names("zzzz", known) == []
