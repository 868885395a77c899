"""GPT-NeoX: GPT-NeoX-20B, Pythia, RedPajama-INCITE, and everything that calls itself model_type "gpt_neox".

Field names and defaults follow transformers' ``GPTNeoXConfig``; tensor names follow ``GPTNeoXForCausalLM``. There, the
rows of ``query_key_value`` go head by head (q, k, v of the first head, then of the second); here they are stacked as in
the other families (all q, all k, all v), and the module is called ``qkv_proj``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.architectures import config_json as read
from builder.architectures import cuts as cutting
from builder.architectures import folds as folding
from builder.architectures import rope, weights
from builder.architectures.cuts import Cut, Part
from builder.architectures.folds import Fold
from builder.architectures.weights import Entry, Parameter, Slice

MODEL = "gpt_neox"
FREE = ("rope_theta", "rope_scaling", "layer_norm_eps", "max_position_embeddings")  # a recipe may change these

ACTIVATIONS = {  # names in config.json -> the function
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; the first ``rotary_dim`` features of each head are rotated, ``rope_theta`` is the base."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    hidden_act: str
    layer_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_position_embeddings: int
    use_parallel_residual: bool
    tie_word_embeddings: bool
    attention_bias: bool

    def __post_init__(self) -> None:
        read.check_types(self)
        rope.check_scaling(self.rope_scaling)
        if self.hidden_act not in ACTIVATIONS.values():
            read.refuse("hidden_act", self.hidden_act, "gelu, gelu_tanh")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            read.refuse("rotary_dim", self.rotary_dim, f"an even number of at most head_dim ({self.head_dim})")


def from_architecture(architecture: Mapping[str, Any]) -> Config:
    """The canonical dict -> Config; the inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
    return read.strict(Config, MODEL, architecture)


def from_hf(config_json: Mapping[str, Any]) -> Config:
    """Read config.json as transformers 4 (rotary_pct, rotary_emb_base) or 5 (rope_parameters) writes it.

    Raises:
        UserError: a field is missing or of the wrong type, or it changes the maths in a way that is not implemented.
    """
    read.check_maths(MODEL, config_json, {"hidden_act": tuple(ACTIVATIONS)}, reads=("use_parallel_residual",))
    hidden_size = read.required(config_json, "hidden_size", MODEL)
    read.required(config_json, "num_attention_heads", MODEL)
    head_dim = read.head_dim({**config_json, "head_dim": None})
    return from_architecture(
        {
            "hidden_size": hidden_size,
            "intermediate_size": read.required(config_json, "intermediate_size", MODEL),
            "num_hidden_layers": read.required(config_json, "num_hidden_layers", MODEL),
            "num_attention_heads": config_json["num_attention_heads"],
            "head_dim": head_dim,
            "rotary_dim": _rotary_dim(config_json, head_dim),
            "vocab_size": read.required(config_json, "vocab_size", MODEL),
            "hidden_act": ACTIVATIONS[read.optional(config_json, "hidden_act", "gelu")],
            "layer_norm_eps": read.optional(config_json, "layer_norm_eps", 1e-5),
            "rope_theta": rope.theta(config_json, ("rope_theta", "rotary_emb_base")),
            "rope_scaling": rope.scaling(config_json, MODEL),
            "max_position_embeddings": read.optional(config_json, "max_position_embeddings", 2048),
            "use_parallel_residual": read.optional(config_json, "use_parallel_residual", True),
            "tie_word_embeddings": read.optional(config_json, "tie_word_embeddings", False),
            "attention_bias": read.optional(config_json, "attention_bias", True),
        }
    )


def _rotary_dim(config_json: Mapping[str, Any], head_dim: int) -> int:
    share = read.number(rope.partial_factor(config_json, ("rotary_pct", "partial_rotary_factor"), 0.25), "float")
    read.check_type("rotary_pct", share, "float")
    return int(head_dim * share)


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
    name = "gpt_neox.embed_in.weight"
    yield weights.copy(Parameter(name, (vocab, hidden), "embedding"), name)
    for layer in range(config.num_hidden_layers):
        yield from _layer_entries(config, f"gpt_neox.layers.{layer}")
    yield from _layer_norm("gpt_neox.final_layer_norm", hidden)
    if not config.tie_word_embeddings:
        yield weights.copy(Parameter("embed_out.weight", (vocab, hidden), "head"), "embed_out.weight")


def _layer_entries(config: Config, layer: str) -> Iterator[Entry]:
    hidden, inner, bias = config.hidden_size, config.intermediate_size, config.attention_bias
    dense, up, down = f"{layer}.attention.dense", f"{layer}.mlp.dense_h_to_4h", f"{layer}.mlp.dense_4h_to_h"
    yield from _layer_norm(f"{layer}.input_layernorm", hidden)
    yield from _layer_norm(f"{layer}.post_attention_layernorm", hidden)
    yield _heads(config, layer, "weight", (hidden,), "linear")
    if bias:
        yield _heads(config, layer, "bias", (), "bias")
    yield from weights.linear(dense, hidden, [(dense, hidden)], bias)
    yield from weights.linear(up, hidden, [(up, inner)], bias=True)
    yield from weights.linear(down, inner, [(down, hidden)], bias=True)


def _heads(config: Config, layer: str, suffix: str, inputs: tuple[int, ...], kind: str) -> Entry:
    """q of every head, then k, then v, out of a tensor of (head, q k v, feature) rows."""
    heads, width = config.num_attention_heads, config.head_dim
    shape = (3 * heads * width, *inputs)
    starts = [(3 * head + part) * width for part in range(3) for head in range(heads)]
    source = f"{layer}.attention.query_key_value.{suffix}"
    return Entry(
        Parameter(f"{layer}.attention.qkv_proj.{suffix}", shape, kind),
        "stack",
        tuple(Slice(source, shape, start, start + width) for start in starts),
    )


def _layer_norm(name: str, width: int) -> Iterator[Entry]:
    yield weights.norm(f"{name}.weight", width)
    yield weights.copy(Parameter(f"{name}.bias", (width,), "bias"), f"{name}.bias")


def folds(config: Config) -> Iterator[Fold]:
    """Where input channels may be scaled; see ``folds``. GELU stands between the two matrices of the MLP."""
    hidden = config.hidden_size
    for layer in (f"gpt_neox.layers.{index}" for index in range(config.num_hidden_layers)):
        attention, up = f"{layer}.attention", f"{layer}.mlp.dense_h_to_4h.weight"
        yield folding.norm(f"{layer}.input_layernorm", [f"{attention}.qkv_proj.weight"], hidden, bias=True)
        bias = config.attention_bias
        yield folding.values(attention, f"{attention}.dense", hidden, hidden, config.head_dim, bias=bias)
        yield folding.norm(f"{layer}.post_attention_layernorm", [up], hidden, bias=True)
    if not config.tie_word_embeddings:
        yield folding.norm("gpt_neox.final_layer_norm", ["embed_out.weight"], hidden, bias=True)


def cuts(config: Config) -> dict[str, Cut]:
    """What tensor parallelism cuts; see ``cuts``."""
    found: dict[str, Cut] = {} if config.tie_word_embeddings else cutting.head("embed_out", config.vocab_size)
    heads = config.num_attention_heads
    inner = Part("intermediate_size", config.intermediate_size)
    for layer in (f"gpt_neox.layers.{index}" for index in range(config.num_hidden_layers)):
        attention, mlp = f"{layer}.attention", f"{layer}.mlp"
        found |= cutting.heads(attention, f"{attention}.dense", heads, heads, config.head_dim)
        found |= {f"{mlp}.dense_h_to_4h": Cut("rows", (inner,)), f"{mlp}.dense_4h_to_h": Cut("columns", (inner,))}
    return found


def _droppable(config: Config) -> Iterator[str]:
    """Masks and angles that older transformers saved and nobody reads, and a tied head, which is the embedding."""
    for layer in range(config.num_hidden_layers):
        for name in ("bias", "masked_bias", "rotary_emb.inv_freq"):
            yield f"gpt_neox.layers.{layer}.attention.{name}"
    if config.tie_word_embeddings:
        yield "embed_out.weight"


def model_config(config: Config, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model_config`` block of mlc-chat-config.json: MLC's names for the architecture and the run-time sizes."""
    return {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "use_parallel_residual": config.use_parallel_residual,
        "position_embedding_base": config.rope_theta,
        "rotary_pct": config.rotary_dim / config.head_dim,
        "rope_scaling": config.rope_scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
        **read.run_time_sizes(metadata),
    }
