"""Gemma 3 text: norms of queries and keys, five layers through a window for one that sees everything, each kind with
a rotary base of its own.

Field names and defaults follow transformers' ``Gemma3TextConfig``; tensor names follow ``Gemma3ForCausalLM``.
"""

from __future__ import annotations

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

MODEL = "gemma3_text"
FREE = ("rope_theta", "rope_local_base_freq", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these
FULL_EVERY = 6  # transformers' default where config.json has no layer_types

OWN = ("query_pre_attn_scalar", "rope_local_base_freq")
HARMLESS: dict[str, tuple[Any, ...]] = {
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


def from_architecture(architecture: Mapping[str, Any]) -> Config:
    """The canonical dict -> Config; the inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
    return read.strict(Config, MODEL, architecture)


def from_hf(config_json: Mapping[str, Any]) -> Config:
    """Read config.json as transformers 4 or 5 writes it.

    Raises:
        UserError: a field is missing or of the wrong type, or it changes the maths in a way that is not implemented.
    """
    read.check_maths(MODEL, {**config_json, "layer_types": None}, HARMLESS, read.WHOLE_HEADS, reads=OWN)
    local, everywhere = split_rope(config_json)
    for part in (local, everywhere):
        rope.check_whole_heads(part, MODEL)
    layers = read.required(config_json, "num_hidden_layers", MODEL)
    every = read.optional(config_json, "sliding_window_pattern", FULL_EVERY)
    return from_architecture(
        {
            "hidden_size": read.required(config_json, "hidden_size", MODEL),
            "intermediate_size": read.required(config_json, "intermediate_size", MODEL),
            "num_hidden_layers": layers,
            "num_attention_heads": read.required(config_json, "num_attention_heads", MODEL),
            "num_key_value_heads": read.optional(config_json, "num_key_value_heads", 4),
            "head_dim": read.optional(config_json, "head_dim", 256),
            "vocab_size": read.required(config_json, "vocab_size", MODEL),
            "rms_norm_eps": read.optional(config_json, "rms_norm_eps", 1e-6),
            "rope_theta": rope.theta(everywhere, default=1e6),
            "rope_local_base_freq": rope.theta(local, ("rope_local_base_freq",)),
            "rope_factor": linear_factor(everywhere),
            "max_position_embeddings": read.optional(config_json, "max_position_embeddings", 131072),
            "tie_word_embeddings": read.optional(config_json, "tie_word_embeddings", True),
            "query_pre_attn_scalar": read.number(read.optional(config_json, "query_pre_attn_scalar", 256), "float"),
            "layer_window": read.optional(config_json, "sliding_window", 4096),
            "full_attention_every": read.full_attention_every(MODEL, config_json, layers, every),
        }
    )


def split_rope(config_json: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What config.json says of the rotary embeddings of windowed layers and of the others, each as if alone.

    transformers 4 has rope_local_base_freq beside rope_theta and rope_scaling; 5 has rope_parameters per layer type.
    """
    block = config_json.get("rope_parameters") or {}
    if not isinstance(block, Mapping) or not set(block) <= {"sliding_attention", "full_attention"}:
        read.unsupported(MODEL, "rope_parameters", block, "null, or an object for each of the layer types")
    top = {key: config_json.get(key) for key in ("rope_theta", "rope_scaling")}
    local = {"rope_local_base_freq": config_json.get("rope_local_base_freq")}
    if rope.scaling({"rope_parameters": block.get("sliding_attention")}, MODEL) is not None:
        read.unsupported(MODEL, "rope_parameters.sliding_attention", block["sliding_attention"], "rope_type 'default'")
    return {**local, "rope_parameters": block.get("sliding_attention")}, {
        **top,
        "rope_parameters": block.get("full_attention"),
    }


def linear_factor(config_json: Mapping[str, Any]) -> float:
    scaling = rope.scaling(config_json, MODEL)
    if scaling is not None and scaling["rope_type"] != "linear":
        read.unsupported(MODEL, "rope_scaling", scaling, "null, or rope_type 'linear'")
    return 1.0 if scaling is None else float(scaling["factor"])


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
    heads = [(f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)]
    yield from weights.linear(f"{attention}.qkv_proj", hidden, heads, False)
    yield weights.norm(f"{attention}.q_norm.weight", config.head_dim)
    yield weights.norm(f"{attention}.k_norm.weight", config.head_dim)
    yield from weights.linear(f"{attention}.o_proj", queries, [(f"{attention}.o_proj", hidden)], False)
    yield weights.norm(f"{layer}.post_attention_layernorm.weight", hidden)
    yield weights.norm(f"{layer}.pre_feedforward_layernorm.weight", hidden)
    gates = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
    yield from weights.linear(f"{mlp}.gate_up_proj", hidden, gates, False)
    yield from weights.linear(f"{mlp}.down_proj", inner, [(f"{mlp}.down_proj", hidden)], False)
    yield weights.norm(f"{layer}.post_feedforward_layernorm.weight", hidden)


def folds(config: Config) -> Iterator[Fold]:
    """Where input channels may be scaled; see ``folds``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    for layer in (f"model.layers.{index}" for index in range(config.num_hidden_layers)):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        yield folding.norm(f"{layer}.input_layernorm", [f"{attention}.qkv_proj.weight"], hidden, offset=1.0)
        yield folding.values(attention, f"{attention}.o_proj", queries, keys, config.head_dim)
        yield folding.norm(f"{layer}.pre_feedforward_layernorm", [f"{mlp}.gate_up_proj.weight"], hidden, offset=1.0)
        yield folding.gated(mlp, inner)
    if not config.tie_word_embeddings:
        yield folding.norm("model.norm", ["lm_head.weight"], hidden, offset=1.0)


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
        "rope_local_base_freq": config.rope_local_base_freq,
        "rope_factor": config.rope_factor,
        "query_pre_attn_scalar": config.query_pre_attn_scalar,
        "layer_window": config.layer_window,
        "full_attention_every": config.full_attention_every,
        "tie_word_embeddings": config.tie_word_embeddings,
        **read.run_time_sizes(metadata),
    }
