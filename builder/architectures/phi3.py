"""Phi-3, Phi-3.5 and Phi-4 mini: projections fused in the checkpoint, LongRoPE, perhaps a sliding window.

Field names and defaults follow transformers' ``Phi3Config``; tensor names follow ``Phi3ForCausalLM``. A LongRoPE model
has two sets of factors, for contexts up to original_max_position_embeddings and for longer ones. A library has one:
the one for the context it is built for.
"""

from __future__ import annotations

import math
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
from llm_build.core.errors import UserError

_MODEL = "phi3"
_FREE = ("rope_theta", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
_LONG = "longrope"
_OLD_LONG = ("su",)  # what Phi-3's first config.json called it
_LONG_FIELDS = ("long_factor", "short_factor", "factor", "attention_factor", "original_max_position_embeddings")


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; ``rotary_dim`` features of a head are rotated; ``rope_scaling`` is null or {"short_factor",
    "long_factor": one number per pair of features, "attention_factor": what multiplies sine and cosine}."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_position_embeddings: int
    original_max_position_embeddings: int
    tie_word_embeddings: bool
    sliding_window: int | None

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            read.refuse("rotary_dim", self.rotary_dim, f"an even number of up to head_dim ({self.head_dim})")
        _check_long_rope(self.rope_scaling, self.rotary_dim)
        if self.sliding_window is not None:
            read.check_type("sliding_window", self.sliding_window, "int")


def _check_long_rope(scaling: Any, rotary_dim: int) -> None:
    if scaling is None:
        return
    keys = ("short_factor", "long_factor", "attention_factor")
    if not isinstance(scaling, Mapping) or set(scaling) != set(keys):
        raise UserError(f"architecture.rope_scaling: found {scaling!r}; allowed: null, or {', '.join(keys)}")
    for key in keys[:2]:
        factors = scaling[key]
        if not isinstance(factors, list | tuple) or len(factors) != rotary_dim // 2:
            allowed = f"{rotary_dim // 2} numbers, one per pair of rotated features of a head (head_dim)"
            read.refuse(f"rope_scaling.{key}", factors, allowed)
        for value in factors:
            read.check_type(f"rope_scaling.{key}", read.as_float(value, "float"), "float")
    read.check_type("rope_scaling.attention_factor", scaling["attention_factor"], "float")


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config, from config.json as transformers 4 or 5 writes it."""
    read.check_maths(_MODEL, config_json, read.SILU, {"attention_bias": (None, False), "mlp_bias": (None, False)})
    sizes = read.sizes(config_json, _MODEL)
    positions = read.settings(config_json, {"max_position_embeddings": 4096, "original_max_position_embeddings": 4096})
    share = rope.partial_factor(config_json, ("partial_rotary_factor",), 1.0)
    return {
        **sizes,
        **positions,
        **read.settings(config_json, {"rms_norm_eps": 1e-5, "tie_word_embeddings": False}),
        "rotary_dim": int(sizes["head_dim"] * share),
        "rope_theta": rope.theta(config_json),
        "rope_scaling": _long_rope(config_json, *positions.values()),
        "sliding_window": config_json.get("sliding_window"),
    }


def _long_rope(config_json: Mapping[str, Any], positions: int, original: int) -> dict[str, Any] | None:
    """The factors, and sqrt(1 + ln(positions / original) / ln(original)) (Ding et al. 2024, arXiv:2402.13753, as in
    transformers' modeling_rope_utils.py)."""
    blocks = {}
    for place in ("rope_parameters", "rope_scaling"):
        block = config_json.get(place)
        if block is not None:
            blocks[place] = _long_block(place, block, positions, original)
    scaling: dict[str, Any] | None = read.single_value("rope_scaling", blocks, None)
    return scaling


def _long_block(place: str, block: Mapping[str, Any], positions: int, original: int) -> dict[str, Any] | None:
    kind = read.single_value(f"{place}.rope_type", {key: block.get(key) for key in ("rope_type", "type")}, "default")
    if kind not in ("default", _LONG, *_OLD_LONG):
        read.unsupported(_MODEL, f"{place}.rope_type", kind, f"default, {_LONG} or su")
    known = () if kind == "default" else _LONG_FIELDS
    for key in block:
        if key not in (*rope.ANY_BLOCK, rope.REPEATED, *known):
            read.unsupported(_MODEL, f"{place}.{key}", block[key], f"no such field with rope_type {kind!r}")
    if kind == "default":
        return None
    for key in ("short_factor", "long_factor"):
        if block.get(key) is None:
            raise UserError(f"config.json: {place} has no {key}, which rope_type {kind!r} needs")
    if original < 2:
        read.refuse("original_max_position_embeddings", original, "a whole number of at least 2")
    factor = positions / original if block.get("factor") is None else block["factor"]
    stretch = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    given = block.get("attention_factor")
    return {
        "short_factor": list(block["short_factor"]),
        "long_factor": list(block["long_factor"]),
        "attention_factor": float(stretch if given is None else given),
    }


def _describe(config: Config) -> Decoder:
    """A Llama with LongRoPE, perhaps partly rotated heads and a window (Abdin et al. 2024, arXiv:2404.14219)."""
    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    norm = rms_norm(hidden, config.rms_norm_eps)
    attention = Attention(hidden, heads, config.num_key_value_heads, width, qkv_tensors=("qkv_proj",), windowed=True)
    mlp = GatedMLP(hidden, config.intermediate_size, tensors=("gate_up_proj",))
    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[pre_norm(norm, attention, mlp)] * config.num_hidden_layers,
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=_rotary(config),
        recipe_window=True,
    )


def _rotary(config: Config) -> Rotary:
    """Which factors there are; the length that a library is built for says which it has."""
    if config.rope_scaling is None:
        return Rotary(config.rotary_dim, config.rope_theta)
    magnitude, original = config.rope_scaling["attention_factor"], config.original_max_position_embeddings
    scaling = {"rope_type": _LONG, **config.rope_scaling, "original_max_position_embeddings": original}
    return Rotary(config.rotary_dim, config.rope_theta, scaling, magnitude)


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE)
