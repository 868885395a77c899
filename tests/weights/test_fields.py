"""Every field that is read from a file of a checkpoint, with a value of every wrong type: a user's error that names the
field, or a plain reading; never another exception, and always at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from llm_build import architectures
from llm_build.architectures.fields import FIELDS, MOST, ROPE_FIELDS
from llm_build.architectures.foreign import FOREIGN
from llm_build.core.errors import UserError

HUGE = int("9" * 4300)
WRONG: list[Any] = [
    [], {}, "x", "", "1", -1, 0, 1, 2, 2147483647, 10**12, 10**18, HUGE, -HUGE, 1.5, -0.0, 1e-320, 1e308, float("inf"),
    float("-inf"), float("nan"), True, False, None, [[]], [{}], [None], ["x"], [1], [[1], 2], {"x": 1}, {"": None},
    {"rope_type": 3}, [True] * 3, "\0", "\ud800", ["full_attention"], [0, 1], {"full_attention": 3},
]  # fmt: skip
SIZES = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 203, "max_position_embeddings": 128, "tie_word_embeddings": False,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
}  # fmt: skip
GELU = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "rotary_pct": 0.25}
LINEAR = {"rope_type": "linear", "factor": 2.0}
LONG = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
GEMMA = {"hidden_activation": "gelu_pytorch_tanh", "head_dim": 16, "sliding_window": 32}
TWO_ROPES = {"sliding_attention": {"rope_type": "default"}, "full_attention": LINEAR}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, "rope_scaling": LINEAR},
    "gpt_neox": {**SIZES, **GELU, "num_key_value_heads": None, "use_parallel_residual": True},
    "qwen2": SIZES,
    "qwen3": {**SIZES, "head_dim": 16},
    "olmo2": SIZES,
    "smollm3": {**SIZES, "no_rope_layers": [1, 1, 1, 0]},
    "mistral": {**SIZES, "sliding_window": 32},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2},
    "phi3": {**SIZES, "rope_scaling": LONG, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0},
    "gemma2": {**GEMMA, **SIZES, "attn_logit_softcapping": 50.0, "layer_types": ["sliding_attention"] * 4},
    "gemma3_text": {**GEMMA, **SIZES, "rope_parameters": TWO_ROPES, "query_pre_attn_scalar": 16},
}
SECONDS = 1.0


def read(family: str, config: Mapping[str, Any]) -> None:
    """Up to the table of parameters, as a plan reads a checkpoint."""
    described = architectures.load(architectures.recognise(config))
    described.parameters(described.from_hf(config))


def changed(config: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for key in {**config, **FIELDS, **(FOREIGN if config["model_type"] == "llama" else {})}:
        for value in WRONG:
            yield key, value, {**config, key: value}
    for block in ("rope_scaling", "rope_parameters"):
        known = config.get(block) or {"rope_type": "linear", "factor": 2.0}
        for key in {**known, **ROPE_FIELDS}:
            for value in WRONG:
                yield f"{block}.{key}", value, {**config, block: {**known, key: value}}


def test_every_family_is_here():
    assert set(CONFIGS) == set(architectures.FAMILIES)
    for family, config in CONFIGS.items():
        read(family, {"model_type": family, **config})


def complaint(read: Callable[[], object], of: object) -> str:
    """What a user is told, "" if nothing is wrong. Fails for any other exception, and for what takes long."""
    start, message = time.monotonic(), ""
    try:
        read()
    except UserError as error:
        message = error.message
    except Exception as error:
        raise AssertionError(f"{str(of)[:200]}: {type(error).__name__}: {error}") from error
    assert time.monotonic() - start < SECONDS, of
    assert len(message) < 1000, of
    return message


@pytest.mark.parametrize("family", CONFIGS)
def test_config_json(family: str):
    for path, value, config in changed({"model_type": family, **CONFIGS[family]}):
        message = complaint(partial(read, family, config), (path, value))
        names_it = any(word[:5] in message for word in path.replace(".", "_").split("_"))
        assert not message or names_it, (path, value, message)


LARGE = {
    "heads of all layers": {"num_hidden_layers": 4096, "num_attention_heads": 4096, "hidden_size": 8192},
    "layers": {"num_hidden_layers": 2147483647},
    "width": {"hidden_size": 10**18},
    "vocabulary": {"vocab_size": 10**12},
    "kinds of layers": {"num_hidden_layers": 4096, "layer_types": ["full_attention", "sliding_attention"] * 2048},
    "experts of all layers": {"num_hidden_layers": 4096, "num_local_experts": 4096, "num_experts": 4096},
}


@pytest.mark.parametrize("large", LARGE)
def test_sizes_that_no_model_has_are_refused_at_once(large: str):
    families = ("mixtral", "qwen3_moe") if large == "experts of all layers" else tuple(CONFIGS)
    for family in families:
        config = {"model_type": family, **CONFIGS[family], **LARGE[large]}
        assert complaint(partial(read, family, config), family), family


def test_the_largest_model_is_planned_at_once():
    most = {"num_hidden_layers": MOST["num_hidden_layers"], "num_attention_heads": 32, "hidden_size": 2048}
    for family in ("llama", "gpt_neox"):
        start = time.monotonic()
        read(family, {"model_type": family, **CONFIGS[family], **most})
        assert time.monotonic() - start < 4 * SECONDS
