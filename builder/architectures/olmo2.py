"""OLMo 2: a Llama that norms what attention and MLP give, not what they take, and all of q and of k at once.

Field names and defaults follow transformers' ``Olmo2Config``; tensor names follow ``Olmo2ForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.architectures import config_json as read
from llm_build.architectures import rope
from llm_build.architectures.family import Family
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.decoder import Decoder, Layer, Residual
from llm_build.architectures.parts.mlp import GatedMLP
from llm_build.architectures.parts.norms import rms_norm
from llm_build.architectures.parts.query_key import WholeNorms
from llm_build.architectures.parts.rotary import Rotary

_MODEL = "olmo2"
_FREE = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; ``rope_theta`` is the base of the rotary angles, ``rms_norm_eps`` goes to the mean square."""

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
    attention_bias: bool

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        rope.check_scaling(self.rope_scaling)


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, config_json, read.SILU, read.NO_WINDOW, read.WHOLE_HEADS)
    rope.check_whole_heads(config_json, _MODEL)
    return {
        **read.sizes(config_json, _MODEL),
        **read.settings(
            config_json,
            {
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 2048,
                "tie_word_embeddings": False,
                "attention_bias": False,
            },
        ),
        "rope_theta": rope.theta(config_json),
        "rope_scaling": rope.scaling(config_json, _MODEL),
    }


def _describe(config: Config) -> Decoder:
    """Norms after attention and MLP, and over all of q and all of k (OLMo team 2025, arXiv:2501.00656)."""
    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    norm = rms_norm(hidden, config.rms_norm_eps)
    attention = Attention(
        hidden,
        heads,
        config.num_key_value_heads,
        width,
        bias=config.attention_bias,
        output_bias=config.attention_bias,
        query_key=WholeNorms(config.rms_norm_eps),
    )
    mlp = GatedMLP(hidden, config.intermediate_size)
    layer = Layer(
        {"self_attn": attention, "post_attention_layernorm": norm, "mlp": mlp, "post_feedforward_layernorm": norm},
        (
            Residual("self_attn", after="post_attention_layernorm"),
            Residual("mlp", after="post_feedforward_layernorm"),
        ),
    )
    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[layer] * config.num_hidden_layers,
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=Rotary(width, config.rope_theta, config.rope_scaling),
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
