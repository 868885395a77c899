"""The fields of config.json that families read, and what each may hold; the sizes that a model may have.

The limits are far above every published model, and low enough that a plan of the largest model takes a second: a
number in a file must not decide how long that is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llm_build.core.errors import UserError
from llm_build.core.fields import ABOVE_ZERO, FLAG, OBJECT, TEXT, Kind, check_fields, list_of, number, whole

_FILE = "config.json: "
MOST: Mapping[str, int] = {  # the largest published ones: Llama 3.1 405B has 126 layers, Kimi K2 384 experts
    "hidden_size": 1 << 18,
    "intermediate_size": 1 << 20,
    "moe_intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 12,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 24,
    "num_local_experts": 1 << 12,
    "num_experts": 1 << 12,
    "num_experts_per_tok": 1 << 12,
}
ANY_SIZE = (1 << 31) - 1  # tokens: positions are 32 bits wide
_MOST_PER_MODEL = 1 << 17  # heads, or experts, of all layers together: each is a slice of a tensor
_SHARE = number(0.0, 1.0, above=True)
_TOKENS = whole(1, ANY_SIZE)

FIELDS: Mapping[str, Kind] = {
    **{name: whole(1, most) for name, most in MOST.items() if name not in ("num_experts", "num_local_experts")},
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings", "sliding_window"), _TOKENS),
    "sliding_window_pattern": whole(1, ANY_SIZE),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "rope_theta", "rotary_emb_base"), ABOVE_ZERO),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _SHARE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "norm_topk_prob"), FLAG),
    **dict.fromkeys(("model_type", "hidden_act", "hidden_activation"), TEXT),
    **dict.fromkeys(("rope_scaling", "rope_parameters"), OBJECT),
    "layer_types": list_of(TEXT, "kinds of layers"),
    "architectures": list_of(TEXT, "names of classes"),
    "no_rope_layers": list_of(whole(0, 1), "0 and 1"),
}
ROPE_FIELDS: Mapping[str, Kind] = {  # of rope_scaling, rope_parameters
    **dict.fromkeys(("rope_type", "type"), TEXT),
    **dict.fromkeys(("rope_theta", "factor", "attention_factor", "low_freq_factor", "high_freq_factor"), ABOVE_ZERO),
    "partial_rotary_factor": _SHARE,
    "original_max_position_embeddings": number(1.0, ANY_SIZE),
    **dict.fromkeys(("short_factor", "long_factor"), list_of(ABOVE_ZERO, "numbers above 0")),
}
_OF_SOME = (  # which others carry along with values that mean nothing to them
    "moe_intermediate_size", "num_experts_per_tok", "norm_topk_prob", "sliding_window",
    "original_max_position_embeddings",
)  # fmt: skip
_LAYER_TYPES = ("sliding_attention", "full_attention")  # each with rotary embeddings of its own: Gemma 3


def check_config(config: Mapping[str, Any], reads: Collection[str]) -> None:
    """UserError for a field of config.json that is of another type than families read, or out of its bounds.
    ``reads``: the fields of the family's Config."""
    check_fields(_FILE, config, {name: kind for name, kind in FIELDS.items() if name in reads or name not in _OF_SOME})
    for name in ("rope_scaling", "rope_parameters"):
        _check_rope(f"{_FILE}{name}.", config.get(name) or {})


def _check_rope(where: str, block: Mapping[str, Any]) -> None:
    check_fields(where, block, {**ROPE_FIELDS, **dict.fromkeys(_LAYER_TYPES, OBJECT)})
    for kind in _LAYER_TYPES:
        if block.get(kind) is not None:
            check_fields(f"{where}{kind}.", block[kind], ROPE_FIELDS)


def check_sizes(architecture: Mapping[str, Any]) -> None:
    """UserError for an architecture whose heads or experts, over all layers, are more than any model has."""
    layers = architecture["num_hidden_layers"]
    for name in ("num_attention_heads", "num_local_experts", "num_experts"):
        count = architecture.get(name, 0)
        if layers * count > _MOST_PER_MODEL:
            raise UserError(
                f"architecture.{name}: found {count} in each of {layers} layers; allowed: up to "
                f"{_MOST_PER_MODEL // layers} in so many"
            )
