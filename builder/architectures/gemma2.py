"""Gemma 2: norms before and after each block, capped scores and logits, every other layer through a window.

Field names and defaults follow transformers' ``Gemma2Config``; tensor names follow ``Gemma2ForCausalLM``.
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
from llm_build.architectures.parts.mlp import GELU_TANH, GatedMLP
from llm_build.architectures.parts.norms import gemma_norm
from llm_build.architectures.parts.rotary import Rotary

_MODEL = "gemma2"
_FREE = ("rope_theta", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
_FULL_EVERY = 2  # transformers' default where config.json has no layer_types

_OWN = ("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (None, False),
}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements. Layers ``full_attention_every`` - 1, twice that - 1, ... see everything, the others the last
    ``layer_window`` tokens. Scores are divided by the square root of ``query_pre_attn_scalar``; a soft cap of null is
    none."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    query_pre_attn_scalar: float
    layer_window: int
    full_attention_every: int
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        for name in ("attn_logit_softcapping", "final_logit_softcapping"):
            if getattr(self, name) is not None:
                read.check_type(name, getattr(self, name), "float")


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, {**config_json, "layer_types": None}, _HARMLESS, read.WHOLE_HEADS, reads=_OWN)
    rope.check_whole_heads(config_json, _MODEL)
    if (scaling := rope.scaling(config_json, _MODEL)) is not None:
        read.unsupported(_MODEL, "rope_scaling", scaling, "null")
    sizes = read.sizes(config_json, _MODEL, key_heads=4, head_width=256)
    layers = sizes["num_hidden_layers"]
    return {
        **sizes,
        **read.settings(
            config_json, {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "tie_word_embeddings": True}
        ),
        "rope_theta": rope.theta(config_json),
        "query_pre_attn_scalar": read.as_float(read.optional(config_json, "query_pre_attn_scalar", 256), "float"),
        "layer_window": read.optional(config_json, "sliding_window", 4096),
        "full_attention_every": read.full_attention_every(_MODEL, config_json, layers, _FULL_EVERY),
        "attn_logit_softcapping": _cap(config_json, "attn_logit_softcapping", 50.0),
        "final_logit_softcapping": _cap(config_json, "final_logit_softcapping", 30.0),
    }


def _cap(config_json: Mapping[str, Any], key: str, default: float | None) -> Any:
    """A soft cap: missing is the default, null is none."""
    return read.as_float(config_json[key], "float") if key in config_json else default


def _describe(config: Config) -> Decoder:
    """Norms before and after attention and MLP, capped scores and logits, and a window in all layers but every
    ``full_attention_every``-th (Gemma Team 2024, arXiv:2408.00118)."""
    hidden, heads = config.hidden_size, (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    norm = gemma_norm(hidden, config.rms_norm_eps)
    mlp = GatedMLP(hidden, config.intermediate_size, GELU_TANH)

    def layer(index: int) -> Layer:
        local = (index + 1) % config.full_attention_every > 0
        attention = Attention(hidden, *heads, scale=config.query_pre_attn_scalar**-0.5, windowed=local)
        return sandwich_norm(norm, attention, mlp)

    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[layer(index) for index in range(config.num_hidden_layers)],
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=Rotary(config.head_dim, config.rope_theta),
        score_cap=config.attn_logit_softcapping,
        logit_cap=config.final_logit_softcapping,
        window=config.layer_window,
        embedding_scale=hidden**0.5,
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
