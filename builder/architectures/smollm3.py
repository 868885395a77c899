"""SmolLM3: a Llama with a tied head whose every fourth layer does not rotate queries and keys.

Field names and defaults follow transformers' ``SmolLM3Config``; tensor names follow ``SmolLM3ForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.architectures import config_json as read
from llm_build.architectures import rope
from llm_build.architectures.family import Family
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.decoder import Decoder, Layer, pre_norm
from llm_build.architectures.parts.mlp import GatedMLP
from llm_build.architectures.parts.norms import rms_norm
from llm_build.architectures.parts.rotary import GraphRotary, Rotary

_MODEL = "smollm3"
_FREE = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
_OWN = ("no_rope_layers", "no_rope_layer_interval")
_EVERY = 4  # transformers' default for no_rope_layer_interval


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements. Layers ``no_rope_layer_interval`` - 1, twice that - 1, ... have no rotary embedding; in the
    others ``rope_theta`` is the base of the angles."""

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
    mlp_bias: bool
    no_rope_layer_interval: int

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        rope.check_scaling(self.rope_scaling)


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it. Windows are refused by name."""
    read.check_maths(_MODEL, config_json, read.SILU, read.WHOLE_HEADS, reads=_OWN)
    rope.check_whole_heads(config_json, _MODEL)
    sizes = read.sizes(config_json, _MODEL, key_heads=4)
    return {
        **sizes,
        **read.settings(
            config_json,
            {
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": True,
                "attention_bias": False,
                "mlp_bias": False,
            },
        ),
        "rope_theta": rope.theta(config_json, default=2e6),
        "rope_scaling": rope.scaling(config_json, _MODEL),
        "no_rope_layer_interval": _interval(config_json, sizes["num_hidden_layers"]),
    }


def _interval(config_json: Mapping[str, Any], layers: int) -> Any:
    """n, where layers n - 1, 2n - 1, ... have no rotation. ``no_rope_layers`` (1: the layer rotates) goes before
    ``no_rope_layer_interval``; transformers reads as many of it as there are layers."""
    interval = read.optional(config_json, "no_rope_layer_interval", _EVERY)
    read.check_type("no_rope_layer_interval", interval, "int")
    rotates = config_json.get("no_rope_layers")
    if rotates is None:
        return interval
    first = rotates.index(0) + 1 if 0 in rotates else layers + 1
    for every in (interval, first):
        if rotates[:layers] == [int((index + 1) % every > 0) for index in range(layers)]:
            return every
    read.unsupported(_MODEL, "no_rope_layers", rotates, "0 for every n-th layer and 1 for the others")


def _describe(config: Config) -> Decoder:
    """A Llama whose graph rotates queries and keys, and not in every layer (Yang et al. 2025, arXiv:2501.18795)."""
    hidden, norm = config.hidden_size, rms_norm(config.hidden_size, config.rms_norm_eps)
    rotation = GraphRotary(Rotary(config.head_dim, config.rope_theta, config.rope_scaling))
    mlp = GatedMLP(hidden, config.intermediate_size, bias=config.mlp_bias)

    def layer(index: int) -> Layer:
        attention = Attention(
            hidden,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            bias=config.attention_bias,
            output_bias=config.attention_bias,
            query_key=rotation if (index + 1) % config.no_rope_layer_interval else None,
        )
        return pre_norm(norm, attention, mlp)

    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[layer(index) for index in range(config.num_hidden_layers)],
        norm=norm,
        tied=config.tie_word_embeddings,
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
