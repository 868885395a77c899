"""Qwen3 with a mixture of experts in every layer, without sliding windows.

Field names and defaults follow transformers' ``Qwen3MoeConfig``; tensor names are those of published checkpoints, which
transformers 5 writes too (mlp.experts.<e>.gate_proj, ...). Here all experts of a layer are one matrix.
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
from llm_build.architectures.parts.query_key import HeadNorms
from llm_build.architectures.parts.rotary import Rotary

_MODEL = "qwen3_moe"
_FREE = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these

_EXPERTS = ("num_experts", "num_local_experts")  # as transformers 4 and 5 write it
_HARMLESS: dict[str, tuple[Any, ...]] = {"decoder_sparse_step": (None, 1), "mlp_only_layers": (None, [])}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; each token goes to ``num_experts_per_tok`` of ``num_experts``, whose shares add up to 1 where
    ``norm_topk_prob`` says so."""

    hidden_size: int
    moe_intermediate_size: int
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
    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        rope.check_scaling(self.rope_scaling)
        if self.num_experts_per_tok > self.num_experts:
            read.refuse("num_experts_per_tok", self.num_experts_per_tok, f"1 to {self.num_experts}, all experts")


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, config_json, read.SILU, read.WHOLE_HEADS, _HARMLESS, reads=_EXPERTS)
    rope.check_whole_heads(config_json, _MODEL)
    return {
        **read.sizes(config_json, _MODEL, key_heads=4, inner="moe_intermediate_size"),
        **read.settings(
            config_json,
            {
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 32768,
                "tie_word_embeddings": False,
                "attention_bias": False,
                "num_experts_per_tok": 8,
                "norm_topk_prob": False,
            },
        ),
        "rope_theta": rope.theta(config_json),
        "rope_scaling": rope.scaling(config_json, _MODEL),
        "num_experts": read.single_value("num_experts", {name: config_json.get(name) for name in _EXPERTS}, 128),
    }


def _describe(config: Config) -> Decoder:
    """A Qwen3 with a mixture of experts in place of the MLP (Qwen3 technical report, arXiv:2505.09388)."""
    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    norm = rms_norm(hidden, config.rms_norm_eps)
    attention = Attention(
        hidden,
        heads,
        config.num_key_value_heads,
        width,
        bias=config.attention_bias,
        output_bias=config.attention_bias,
        query_key=HeadNorms(config.rms_norm_eps),
    )
    mlp = Experts(
        hidden,
        config.moe_intermediate_size,
        config.num_experts,
        config.num_experts_per_tok,
        normalized=config.norm_topk_prob,
        inner_name="moe_intermediate_size",
    )
    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[pre_norm(norm, attention, mlp)] * config.num_hidden_layers,
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=Rotary(width, config.rope_theta, config.rope_scaling),
    )


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
