"""Phi-3, Phi-3.5 and Phi-4 mini: projections fused in the checkpoint, LongRoPE, perhaps a sliding window.

Field names and defaults follow transformers' ``Phi3Config``; tensor names follow ``Phi3ForCausalLM``. A LongRoPE model
has two sets of factors, for contexts up to original_max_position_embeddings and for longer ones. A library has one:
the one for the context it is built for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.architectures import config_json as read
from builder.architectures import cuts as cutting
from builder.architectures import folds as folding
from builder.architectures import rope, weights
from builder.architectures.cuts import Cut
from builder.architectures.folds import Fold
from builder.architectures.weights import Entry, Parameter
from builder.core.errors import UserError

MODEL = "phi3"
FREE = ("rope_theta", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
LONG = "longrope"
OLD_LONG = ("su",)  # what Phi-3's first config.json called it
LONG_FIELDS = ("long_factor", "short_factor", "factor", "attention_factor", "original_max_position_embeddings")


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
        check_long_rope(self.rope_scaling, self.rotary_dim)
        if self.sliding_window is not None:
            read.check_type("sliding_window", self.sliding_window, "int")


def from_architecture(architecture: Mapping[str, Any]) -> Config:
    """The canonical dict -> Config; the inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
    return read.strict(Config, MODEL, architecture)


def check_long_rope(scaling: Any, rotary_dim: int) -> None:
    if scaling is None:
        return
    keys = ("short_factor", "long_factor", "attention_factor")
    if not isinstance(scaling, Mapping) or set(scaling) != set(keys):
        raise UserError(f"architecture.rope_scaling: found {scaling!r}; allowed: null, or {', '.join(keys)}")
    for key in keys[:2]:
        factors = scaling[key]
        if not isinstance(factors, list | tuple) or len(factors) != rotary_dim // 2:
            read.refuse(f"rope_scaling.{key}", factors, f"{rotary_dim // 2} numbers, one per pair of rotated features")
        for value in factors:
            read.check_type(f"rope_scaling.{key}", read.number(value, "float"), "float")
    read.check_type("rope_scaling.attention_factor", scaling["attention_factor"], "float")


def from_hf(config_json: Mapping[str, Any]) -> Config:
    """Read config.json as transformers 4 or 5 writes it.

    Raises:
        UserError: a field is missing or of the wrong type, or it changes the maths in a way that is not implemented.
    """
    read.check_maths(MODEL, config_json, read.SILU, {"attention_bias": (None, False), "mlp_bias": (None, False)})
    hidden_size = read.required(config_json, "hidden_size", MODEL)
    heads = read.required(config_json, "num_attention_heads", MODEL)
    positions = read.optional(config_json, "max_position_embeddings", 4096)
    original = read.optional(config_json, "original_max_position_embeddings", 4096)
    head_dim = read.head_dim(config_json)
    share = rope.partial_factor(config_json, ("partial_rotary_factor",), 1.0)
    return from_architecture(
        {
            "hidden_size": hidden_size,
            "intermediate_size": read.required(config_json, "intermediate_size", MODEL),
            "num_hidden_layers": read.required(config_json, "num_hidden_layers", MODEL),
            "num_attention_heads": heads,
            "num_key_value_heads": read.optional(config_json, "num_key_value_heads", heads),
            "head_dim": head_dim,
            "rotary_dim": int(head_dim * share),
            "vocab_size": read.required(config_json, "vocab_size", MODEL),
            "rms_norm_eps": read.optional(config_json, "rms_norm_eps", 1e-5),
            "rope_theta": rope.theta(config_json),
            "rope_scaling": long_rope(config_json, positions, original),
            "max_position_embeddings": positions,
            "original_max_position_embeddings": original,
            "tie_word_embeddings": read.optional(config_json, "tie_word_embeddings", False),
            "sliding_window": config_json.get("sliding_window"),
        }
    )


def long_rope(config_json: Mapping[str, Any], positions: int, original: int) -> dict[str, Any] | None:
    """The factors, and sqrt(1 + ln(positions / original) / ln(original)) (Ding et al. 2024, arXiv:2402.13753, as in
    transformers' modeling_rope_utils.py)."""
    found = {}
    for place in ("rope_parameters", "rope_scaling"):
        block = config_json.get(place)
        if block is not None:
            found[place] = _long_block(place, block, positions, original)
    scaling: dict[str, Any] | None = read.agreed("rope_scaling", found, None)
    return scaling


def _long_block(place: str, block: Mapping[str, Any], positions: int, original: int) -> dict[str, Any] | None:
    kind = read.agreed(f"{place}.rope_type", {key: block.get(key) for key in ("rope_type", "type")}, "default")
    if kind not in ("default", LONG, *OLD_LONG):
        read.unsupported(MODEL, f"{place}.rope_type", kind, f"default, {LONG} or su")
    known = () if kind == "default" else LONG_FIELDS
    for key in block:
        if key not in (*rope.ANY_BLOCK, rope.REPEATED, *known):
            read.unsupported(MODEL, f"{place}.{key}", block[key], f"no such field with rope_type {kind!r}")
    if kind == "default":
        return None
    for key in ("short_factor", "long_factor"):
        if block.get(key) is None:
            raise UserError(f"config.json: {place} has no {key}, which rope_type {kind!r} needs")
    factor = positions / original if block.get("factor") is None else block["factor"]
    stretch = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    given = block.get("attention_factor")
    return {
        "short_factor": list(block["short_factor"]),
        "long_factor": list(block["long_factor"]),
        "attention_factor": float(stretch if given is None else given),
    }


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The recipe's values over the checkpoint's: FREE ones win, the others must agree with the weights."""
    return read.merge(config, MODEL, overrides, FREE)


def parameters(config: Config) -> tuple[Parameter, ...]:
    """The compiled model's parameters in the artifact's order; matrices are (output, input)."""
    return tuple(entry.parameter for entry in _entries(config))


def weight_map(config: Config, layout: Mapping[str, Any]) -> dict[str, Any]:
    """The weight map of this model over a checkpoint's layout, as JSON; see :func:`weights.weight_map`."""
    return weights.weight_map(list(_entries(config)), _droppable(config), layout)


def _entries(config: Config) -> Iterator[Entry]:
    hidden, vocab = config.hidden_size, config.vocab_size
    name = "model.embed_tokens.weight"
    yield weights.copy(Parameter(name, (vocab, hidden), "embedding"), name)
    for layer in range(config.num_hidden_layers):
        yield from _layer_entries(config, f"model.layers.{layer}")
    yield weights.norm("model.norm.weight", hidden)
    if not config.tie_word_embeddings:
        yield weights.copy(Parameter("lm_head.weight", (vocab, hidden), "head"), "lm_head.weight")


def _layer_entries(config: Config, layer: str) -> Iterator[Entry]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
    yield weights.norm(f"{layer}.input_layernorm.weight", hidden)
    heads = queries + 2 * keys
    yield from weights.linear(f"{attention}.qkv_proj", hidden, [(f"{attention}.qkv_proj", heads)], False)
    yield from weights.linear(f"{attention}.o_proj", queries, [(f"{attention}.o_proj", hidden)], False)
    yield weights.norm(f"{layer}.post_attention_layernorm.weight", hidden)
    yield from weights.linear(f"{mlp}.gate_up_proj", hidden, [(f"{mlp}.gate_up_proj", 2 * inner)], False)
    yield from weights.linear(f"{mlp}.down_proj", inner, [(f"{mlp}.down_proj", hidden)], False)


def folds(config: Config) -> Iterator[Fold]:
    """Where input channels may be scaled; see ``folds``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for layer in (f"model.layers.{index}" for index in range(config.num_hidden_layers)):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        yield folding.norm(f"{layer}.input_layernorm", [f"{attention}.qkv_proj.weight"], hidden)
        yield folding.values(attention, f"{attention}.o_proj", queries, keys, config.head_dim)
        yield folding.norm(f"{layer}.post_attention_layernorm", [f"{mlp}.gate_up_proj.weight"], hidden)
        yield folding.gated(mlp, inner)
    if not config.tie_word_embeddings:
        yield folding.norm("model.norm", ["lm_head.weight"], hidden)


def cuts(config: Config) -> dict[str, Cut]:
    """What tensor parallelism cuts; see ``cuts``."""
    found: dict[str, Cut] = {} if config.tie_word_embeddings else cutting.head("lm_head", config.vocab_size)
    queries, keys, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    for layer in (f"model.layers.{index}" for index in range(config.num_hidden_layers)):
        attention = f"{layer}.self_attn"
        found |= cutting.heads(attention, f"{attention}.o_proj", queries, keys, width)
        found |= cutting.gated(f"{layer}.mlp", config.intermediate_size)
    return found


def _droppable(config: Config) -> Iterator[str]:
    """Tensors that older transformers saved and nobody reads, and a tied head, which is the embedding."""
    yield "model.rotary_emb.inv_freq"
    for layer in range(config.num_hidden_layers):
        yield f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"
    if config.tie_word_embeddings:
        yield "lm_head.weight"


def model_config(config: Config, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model_config`` block of mlc-chat-config.json: MLC's names for the architecture and the run-time sizes."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "position_embedding_base": config.rope_theta,
        "rope_scaling": config.rope_scaling,
        "original_max_position_embeddings": config.original_max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        **read.run_time_sizes(metadata),
    }
