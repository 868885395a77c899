"""Sliding windows in a recipe: what null means, and what is refused."""

from __future__ import annotations

import pytest

from llm_build.config.schema import Metadata, Model, Verify
from llm_build.core.errors import UserError
from llm_build.planner.feasibility.comparable import check_comparable
from llm_build.planner.feasibility.sizing import decide_metadata

MISTRAL = {"max_position_embeddings": 512, "sliding_window": 128}


def decide(architecture: dict[str, int | None], **fields: int) -> tuple[int, int]:
    metadata = decide_metadata(Model(**fields), architecture, lambda _: "")
    return metadata.sliding_window_size, metadata.attention_sink_size


@pytest.mark.parametrize(
    ("architecture", "fields", "expected"),
    [
        (MISTRAL, {}, (128, 0)),
        (MISTRAL, {"attention_sink_size": 4}, (128, 4)),
        (MISTRAL, {"sliding_window_size": 64}, (64, 0)),
        (MISTRAL, {"sliding_window_size": -1}, (-1, 0)),
        (MISTRAL, {"context_window_size": 128}, (-1, 0)),  # no context outgrows the window
        ({**MISTRAL, "sliding_window": None}, {}, (-1, 0)),
        ({**MISTRAL, "sliding_window": None}, {"sliding_window_size": 64}, (64, 0)),
        ({"max_position_embeddings": 512}, {}, (-1, 0)),
    ],
)
def test_null_is_what_the_checkpoint_says(architecture, fields, expected):
    assert decide(architecture, **fields) == expected


@pytest.mark.parametrize(
    ("architecture", "fields", "said"),
    [
        (MISTRAL, {"sliding_window_size": 513}, "sliding_window_size: 513 is not possible; allowed: 1 to 512"),
        (MISTRAL, {"sliding_window_size": 0}, "sliding_window_size: 0 is not possible; allowed: 1 to 512"),
        (MISTRAL, {"attention_sink_size": 128}, "attention_sink_size: 128 is not possible; allowed: 0 to 127"),
        (MISTRAL, {"sliding_window_size": -1, "attention_sink_size": 1}, "attention_sink_size: 1 is not possible"),
        (
            {"max_position_embeddings": 512},
            {"sliding_window_size": 64},
            "sliding_window_size: 64 is not possible; allowed: -1 (-1 is off; this family has no window",
        ),
    ],
)
def test_a_window_that_cannot_be_is_refused_with_what_can(architecture, fields, said):
    with pytest.raises(UserError) as error:
        decide(architecture, **fields)
    assert said in error.value.message


def verify(enabled: bool, window: int) -> Verify:
    limits = {"max_error": None, "rms_error": None, "kl": None, "top1": None, "perplexity": None}
    exact = {"exact_max": 1e-4, "exact_rms": 1e-5, "exact_rounded": {}}
    return Verify(enabled=enabled, text=None, tokens=64, window=window, logits_bytes=1, **exact, **limits)


def test_long_rope_is_not_compared_with_other_factors():
    architecture = {"rope_scaling": {"long_factor": [1.0]}, "original_max_position_embeddings": 64}
    sizes = Metadata(128, -1, 64, 0, 1, 1)
    with pytest.raises(UserError) as error:
        check_comparable(architecture, sizes, verify(True, 64))
    assert error.value.message.startswith("model.context_window_size: 128 takes this model's long RoPE factors")
    assert "verify.window=65" in str(error.value.hint)
    check_comparable(architecture, sizes, verify(True, 65))
    check_comparable(architecture, sizes, verify(False, 64))
    check_comparable(architecture, Metadata(64, -1, 64, 0, 1, 1), verify(True, 64))
    check_comparable({**architecture, "rope_scaling": None}, sizes, verify(True, 64))


@pytest.mark.parametrize(
    ("window", "sinks", "compared", "allowed"),
    [
        (32, 4, 33, False),
        (32, 4, 32, True),
        (32, 0, 128, True),
        (16, 0, 17, False),
        (-1, 0, 33, False),
        (-1, 0, 32, True),
    ],
)
def test_another_window_than_the_checkpoint_has_is_not_compared_with_it(window, sinks, compared, allowed):
    sizes = Metadata(128, window, 64, sinks, 1, 1)
    if allowed:
        check_comparable({"sliding_window": 32}, sizes, verify(True, compared))
        return
    with pytest.raises(UserError, match="the checkpoint's window is 32: beyond"):
        check_comparable({"sliding_window": 32}, sizes, verify(True, compared))
