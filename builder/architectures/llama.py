"""Llama 1 to 3, TinyLlama, DeepSeek-LLM, Yi, and everything that calls itself model_type "llama".

Field names and defaults follow transformers' ``LlamaConfig``; tensor names follow ``LlamaForCausalLM``.
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

MODEL = "llama"
FREE = ("rope_theta", "rope_scaling", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these


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
    mlp_bias: bool

    def __post_init__(self) -> None:
        read.check_types(self)
        read.check_heads(self.num_attention_heads, self.num_key_value_heads, self.head_dim)
        rope.check_scaling(self.rope_scaling)


def from_architecture(architecture: Mapping[str, Any]) -> Config:
    """The canonical dict -> Config; the inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
    return read.strict(Config, MODEL, architecture)


def from_hf(config_json: Mapping[str, Any]) -> Config:
    """Read config.json as transformers 4 or 5 writes it.

    Raises:
        UserError: a field is missing or of the wrong type, or it changes the maths in a way that is not implemented.
    """
    read.check_maths(MODEL, config_json, read.SILU, read.NO_WINDOW, read.WHOLE_HEADS)
    rope.check_whole_heads(config_json, MODEL)
    hidden_size = read.required(config_json, "hidden_size", MODEL)
    heads = read.required(config_json, "num_attention_heads", MODEL)
    return from_architecture(
        {
            "hidden_size": hidden_size,
            "intermediate_size": read.required(config_json, "intermediate_size", MODEL),
            "num_hidden_layers": read.required(config_json, "num_hidden_layers", MODEL),
            "num_attention_heads": heads,
            "num_key_value_heads": read.optional(config_json, "num_key_value_heads", heads),
            "head_dim": read.head_dim(config_json),
            "vocab_size": read.required(config_json, "vocab_size", MODEL),
            "rms_norm_eps": read.optional(config_json, "rms_norm_eps", 1e-6),
            "rope_theta": rope.theta(config_json),
            "rope_scaling": rope.scaling(config_json, MODEL),
            "max_position_embeddings": read.optional(config_json, "max_position_embeddings", 2048),
            "tie_word_embeddings": read.optional(config_json, "tie_word_embeddings", False),
            "attention_bias": read.optional(config_json, "attention_bias", False),
            "mlp_bias": read.optional(config_json, "mlp_bias", False),
        }
    )


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
    attention, mlp, bias = f"{layer}.self_attn", f"{layer}.mlp", config.attention_bias
    yield weights.norm(f"{layer}.input_layernorm.weight", hidden)
    heads = [(f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)]
    yield from weights.linear(f"{attention}.qkv_proj", hidden, heads, bias)
    yield from weights.linear(f"{attention}.o_proj", queries, [(f"{attention}.o_proj", hidden)], bias)
    yield weights.norm(f"{layer}.post_attention_layernorm.weight", hidden)
    gates = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
    yield from weights.linear(f"{mlp}.gate_up_proj", hidden, gates, config.mlp_bias)
    yield from weights.linear(f"{mlp}.down_proj", inner, [(f"{mlp}.down_proj", hidden)], config.mlp_bias)


def folds(config: Config) -> Iterator[Fold]:
    """Where input channels may be scaled; see ``folds``."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    bias = config.attention_bias
    for layer in (f"model.layers.{index}" for index in range(config.num_hidden_layers)):
        attention, mlp = f"{layer}.self_attn", f"{layer}.mlp"
        yield folding.norm(f"{layer}.input_layernorm", [f"{attention}.qkv_proj.weight"], hidden)
        yield folding.values(attention, f"{attention}.o_proj", queries, keys, config.head_dim, bias=bias)
        yield folding.norm(f"{layer}.post_attention_layernorm", [f"{mlp}.gate_up_proj.weight"], hidden)
        yield folding.gated(mlp, inner, bias=config.mlp_bias)
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
        "tie_word_embeddings": config.tie_word_embeddings,
        **read.run_time_sizes(metadata),
    }
