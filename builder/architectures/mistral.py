"""Mistral: a Llama whose layers may look through a sliding window.

Field names and defaults follow transformers' ``MistralConfig``; tensor names follow ``MistralForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.architectures import config_json as read
from llm_build.architectures import rope
from llm_build.architectures.family import Family
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.decoder import Decoder, pre_norm
from llm_build.architectures.parts.mlp import GatedMLP
from llm_build.architectures.parts.norms import rms_norm
from llm_build.architectures.parts.rotary import Rotary

_MODEL = "mistral"
_FREE = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
_DEFAULT_WINDOW = 4096  # where config.json does not mention it; null is no window


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; ``sliding_window`` in tokens: model.sliding_window_size where the recipe does not say."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_position_embeddings: int
    tie_word_embeddings: bool
    sliding_window: int | None

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        rope.check_scaling(self.rope_scaling)


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, config_json, read.SILU, read.WHOLE_HEADS)
    rope.check_whole_heads(config_json, _MODEL)
    return {
        **read.sizes(config_json, _MODEL, key_heads=8),
        **read.settings(
            config_json, {"rms_norm_eps": 1e-6, "max_position_embeddings": 4096 * 32, "tie_word_embeddings": False}
        ),
        "rope_theta": rope.theta(config_json),
        "rope_scaling": rope.scaling(config_json, _MODEL),
        "sliding_window": config_json.get("sliding_window", _DEFAULT_WINDOW),
    }


def _describe(config: Config) -> Decoder:
    """A Llama with every layer looking through the recipe's window (Jiang et al. 2023, arXiv:2310.06825)."""
    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    norm = rms_norm(hidden, config.rms_norm_eps)
    attention = Attention(hidden, heads, config.num_key_value_heads, width, windowed=True)
    mlp = GatedMLP(hidden, config.intermediate_size)
    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[pre_norm(norm, attention, mlp)] * config.num_hidden_layers,
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=Rotary(width, config.rope_theta, config.rope_scaling),
        recipe_window=True,
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
