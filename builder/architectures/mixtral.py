"""Mixtral: a Mistral whose MLP is a mixture of experts.

Field names and defaults follow transformers' ``MixtralConfig``; tensor names are those of published checkpoints,
which transformers 5 writes too (block_sparse_moe.experts.<e>.w1, w2, w3). Here all experts of a layer are one matrix.
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
from llm_build.architectures.parts.experts import Experts
from llm_build.architectures.parts.norms import rms_norm
from llm_build.architectures.parts.rotary import Rotary

_MODEL = "mixtral"
_FREE = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
_HARMLESS: dict[str, tuple[Any, ...]] = {"router_jitter_noise": (None, 0, 0.0)}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; each token goes to ``num_experts_per_tok`` of ``num_local_experts``. ``sliding_window`` (in
    tokens) is what model.sliding_window_size becomes where the recipe does not say."""

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
    num_local_experts: int
    num_experts_per_tok: int
    sliding_window: int | None

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        rope.check_scaling(self.rope_scaling)
        if self.num_experts_per_tok > self.num_local_experts:
            read.refuse("num_experts_per_tok", self.num_experts_per_tok, f"1 to {self.num_local_experts}, all experts")


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, config_json, read.SILU, read.WHOLE_HEADS, _HARMLESS, reads=("num_local_experts",))
    rope.check_whole_heads(config_json, _MODEL)
    return {
        **read.sizes(config_json, _MODEL, key_heads=8),
        **read.settings(
            config_json,
            {
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 4096 * 32,
                "tie_word_embeddings": False,
                "num_local_experts": 8,
                "num_experts_per_tok": 2,
            },
        ),
        "rope_theta": rope.theta(config_json, default=1e6),
        "rope_scaling": rope.scaling(config_json, _MODEL),
        "sliding_window": config_json.get("sliding_window"),
    }


def _describe(config: Config) -> Decoder:
    """A Mistral with a mixture of experts in place of the MLP (Jiang et al. 2024, arXiv:2401.04088)."""
    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    norm = rms_norm(hidden, config.rms_norm_eps)
    attention = Attention(hidden, heads, config.num_key_value_heads, width, windowed=True)
    mlp = Experts(
        hidden,
        config.intermediate_size,
        config.num_local_experts,
        config.num_experts_per_tok,
        gates=("w1", "w3"),
        down="w2",
    )
    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[pre_norm(norm, attention, mlp, "block_sparse_moe")] * config.num_hidden_layers,
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=Rotary(width, config.rope_theta, config.rope_scaling),
        recipe_window=True,
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
