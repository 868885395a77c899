"""Gemma 3 text: norms of queries and keys, five layers through a window for one that sees everything, each kind with
a rotary base of its own.

Field names and defaults follow transformers' ``Gemma3TextConfig``; tensor names follow ``Gemma3ForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.architectures import config_json as read
from llm_build.architectures import rope
from llm_build.architectures.family import Family
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.decoder import Decoder, Layer, sandwich_norm
from llm_build.architectures.parts.head_norm_rotary import HeadNormRotary
from llm_build.architectures.parts.mlp import GELU_TANH, GatedMLP
from llm_build.architectures.parts.norms import gemma_norm

_MODEL = "gemma3_text"
_FREE = ("rope_theta", "rope_local_base_freq", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
_FULL_EVERY = 6  # transformers' default where config.json has no layer_types

_OWN = ("query_pre_attn_scalar", "rope_local_base_freq")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (None, False),
}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements. Layers ``full_attention_every`` - 1, twice that - 1, ... see everything, the others the last
    ``layer_window`` tokens, rotated with base ``rope_local_base_freq``; ``rope_factor`` divides the angles of the
    others. Scores are divided by the square root of ``query_pre_attn_scalar``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_local_base_freq: float
    rope_factor: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    query_pre_attn_scalar: float
    layer_window: int
    full_attention_every: int

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, {**config_json, "layer_types": None}, _HARMLESS, read.WHOLE_HEADS, reads=_OWN)
    local, full = _split_rope(config_json)
    for part in (local, full):
        rope.check_whole_heads(part, _MODEL)
    sizes = read.sizes(config_json, _MODEL, key_heads=4, head_width=256)
    every = read.optional(config_json, "sliding_window_pattern", _FULL_EVERY)
    return {
        **sizes,
        **read.settings(
            config_json, {"rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "tie_word_embeddings": True}
        ),
        "rope_theta": rope.theta(full, default=1e6),
        "rope_local_base_freq": rope.theta(local, ("rope_local_base_freq",)),
        "rope_factor": _linear_factor(full),
        "query_pre_attn_scalar": read.as_float(read.optional(config_json, "query_pre_attn_scalar", 256), "float"),
        "layer_window": read.optional(config_json, "sliding_window", 4096),
        "full_attention_every": read.full_attention_every(_MODEL, config_json, sizes["num_hidden_layers"], every),
    }


def _split_rope(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json says of the rotary embeddings of windowed layers and of the others, each as if alone.

    transformers 4 has rope_local_base_freq beside rope_theta and rope_scaling; 5 has rope_parameters per layer type.
    """
    block = config_json.get("rope_parameters") or {}
    if not isinstance(block, Mapping) or not set(block) <= {"sliding_attention", "full_attention"}:
        read.unsupported(_MODEL, "rope_parameters", block, "null, or an object for each of the layer types")
    top = {key: config_json.get(key) for key in ("rope_theta", "rope_scaling")}
    local = {"rope_local_base_freq": config_json.get("rope_local_base_freq")}
    if rope.scaling({"rope_parameters": block.get("sliding_attention")}, _MODEL) is not None:
        read.unsupported(_MODEL, "rope_parameters.sliding_attention", block["sliding_attention"], "rope_type 'default'")
    return {**local, "rope_parameters": block.get("sliding_attention")}, {
        **top,
        "rope_parameters": block.get("full_attention"),
    }


def _linear_factor(config_json: Mapping[str, Any]) -> float:
    scaling = rope.scaling(config_json, _MODEL)
    if scaling is not None and scaling["rope_type"] != "linear":
        read.unsupported(_MODEL, "rope_scaling", scaling, "null, or rope_type 'linear'")
    return 1.0 if scaling is None else float(scaling["factor"])


def _describe(config: Config) -> Decoder:
    """A Gemma 2 without caps whose queries and keys are normed, with a rotary base for layers with a window and one
    for the others: the graph rotates, and the cache does not (Gemma Team 2025, arXiv:2503.19786)."""
    hidden, heads = config.hidden_size, (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    norm = gemma_norm(hidden, config.rms_norm_eps)
    mlp = GatedMLP(hidden, config.intermediate_size, GELU_TANH)

    def layer(index: int) -> Layer:
        local = (index + 1) % config.full_attention_every > 0
        base, factor = (config.rope_local_base_freq, 1.0) if local else (config.rope_theta, config.rope_factor)
        turn = HeadNormRotary(config.rms_norm_eps, base, factor)
        attention = Attention(hidden, *heads, query_key=turn, scale=config.query_pre_attn_scalar**-0.5, windowed=local)
        return sandwich_norm(norm, attention, mlp)

    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[layer(index) for index in range(config.num_hidden_layers)],
        norm=norm,
        tied=config.tie_word_embeddings,
        window=config.layer_window,
        embedding_scale=hidden**0.5,
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
