"""Llama: Llama 1-3 (without RoPE scaling), TinyLlama, and everything that calls itself model_type "llama".

Field names and defaults follow transformers' ``LlamaConfig``; tensor names follow ``LlamaForCausalLM``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from typing import Any, NoReturn

from builder.architectures import weights
from builder.architectures.weights import Entry, Parameter
from builder.core.errors import UserError

FREE = ("rope_theta", "rms_norm_eps", "max_position_embeddings")  # a recipe may change these; weights fix the rest

HARMLESS: dict[str, tuple[Any, ...]] = {  # fields that would change the maths, and the values that do not
    "hidden_act": ("silu", "swish"),
    "sliding_window": (None,),
    "use_sliding_window": (None, False),
    "partial_rotary_factor": (None, 1.0),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "quantization_config": (None,),
}
TRIVIAL_ROPE = (None, "default")


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
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        if self.num_attention_heads % self.num_key_value_heads:
            _refuse(
                "num_key_value_heads",
                self.num_key_value_heads,
                f"a divisor of num_attention_heads ({self.num_attention_heads})",
            )
        if self.head_dim % 2:
            _refuse("head_dim", self.head_dim, "an even number (rotary embeddings turn pairs)")


def _refuse(name: str, found: Any, allowed: str) -> NoReturn:
    raise UserError(f"architecture.{name}: found {found!r}; allowed: {allowed}", "compare with the model's config.json")


def _check_type(name: str, value: Any, kind: str) -> None:
    if kind == "bool" and not isinstance(value, bool):
        _refuse(name, value, "true or false")
    if kind == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        _refuse(name, value, "a whole number of at least 1")
    if kind == "float" and not (isinstance(value, float) and math.isfinite(value) and value > 0):
        _refuse(name, value, "a finite number above 0")


def from_architecture(architecture: Mapping[str, Any]) -> Config:
    """The canonical dict -> Config; the inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
    known = [field.name for field in fields(Config)]
    for key in architecture:
        if key not in known:
            near = get_close_matches(key, known, n=1) or known
            raise UserError(f"architecture.{key} is not a key of a llama; did you mean {', '.join(near)}?")
    for key in known:
        if key not in architecture:
            raise UserError(f"architecture.{key} is missing; a llama has: {', '.join(known)}")
    return Config(**{field.name: _number(architecture[field.name], str(field.type)) for field in fields(Config)})


def _number(value: Any, kind: str) -> Any:
    """JSON and YAML write 10000 for 10000.0."""
    return float(value) if kind == "float" and isinstance(value, int) and not isinstance(value, bool) else value


def from_hf(config_json: Mapping[str, Any]) -> Config:
    """Read config.json as transformers 4 or 5 writes it.

    Raises:
        UserError: a field is missing or of the wrong type, or it changes the maths in a way that is not implemented.
    """
    _check_maths(config_json)
    hidden_size = _required(config_json, "hidden_size")
    heads = _required(config_json, "num_attention_heads")
    return from_architecture(
        {
            "hidden_size": hidden_size,
            "intermediate_size": _required(config_json, "intermediate_size"),
            "num_hidden_layers": _required(config_json, "num_hidden_layers"),
            "num_attention_heads": heads,
            "num_key_value_heads": _optional(config_json, "num_key_value_heads", heads),
            "head_dim": _head_dim(config_json, hidden_size, heads),
            "vocab_size": _required(config_json, "vocab_size"),
            "rms_norm_eps": _optional(config_json, "rms_norm_eps", 1e-6),
            "rope_theta": _rope_theta(config_json),
            "max_position_embeddings": _optional(config_json, "max_position_embeddings", 2048),
            "tie_word_embeddings": _optional(config_json, "tie_word_embeddings", False),
            "attention_bias": _optional(config_json, "attention_bias", False),
            "mlp_bias": _optional(config_json, "mlp_bias", False),
        }
    )


def _required(config_json: Mapping[str, Any], key: str) -> Any:
    if config_json.get(key) is None:
        raise UserError(f"config.json has no {key}, which a llama needs", "is config.json complete?")
    return config_json[key]


def _optional(config_json: Mapping[str, Any], key: str, default: Any) -> Any:
    """transformers writes null for "the default"."""
    value = config_json.get(key)
    return default if value is None else value


def _head_dim(config_json: Mapping[str, Any], hidden_size: Any, heads: Any) -> Any:
    found = config_json.get("head_dim")
    if found is not None:
        return found
    _check_type("hidden_size", hidden_size, "int")
    _check_type("num_attention_heads", heads, "int")
    if hidden_size % heads:
        _refuse("num_attention_heads", heads, f"a divisor of hidden_size ({hidden_size}), as head_dim is not given")
    return hidden_size // heads


def _rope_theta(config_json: Mapping[str, Any]) -> Any:
    """transformers 4: rope_theta at the top; 5: inside rope_parameters (and rope_scaling as its alias)."""
    found = {
        place: block["rope_theta"]
        for place, block in _rope_blocks(config_json).items()
        if block.get("rope_theta") is not None
    }
    if config_json.get("rope_theta") is not None:
        found["top level"] = config_json["rope_theta"]
    if len(set(found.values())) > 1:
        raise UserError(
            f"config.json gives rope_theta twice with different values: {found}",
            "keep the one that the model was trained with",
        )
    return next(iter(found.values()), 10000.0)


def _rope_blocks(config_json: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    blocks: dict[str, Mapping[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        block = config_json.get(name)
        if block is None:
            continue
        if not isinstance(block, Mapping):
            raise UserError(f"config.json: {name} is {block!r}; allowed: null or an object")
        blocks[name] = block
    return blocks


def _check_maths(config_json: Mapping[str, Any]) -> None:
    for name, allowed in HARMLESS.items():
        if name in config_json and config_json[name] not in allowed:
            _unsupported(name, config_json[name], " or ".join(repr(value) for value in allowed))
    for name, block in _rope_blocks(config_json).items():
        for key in ("rope_type", "type"):
            if block.get(key) not in TRIVIAL_ROPE:
                _unsupported(f"{name}.{key}", block[key], "'default'")
        for key in block:
            if key not in ("rope_type", "type", "rope_theta", "partial_rotary_factor"):
                _unsupported(f"{name}.{key}", block[key], "no such field")
        if block.get("partial_rotary_factor") not in HARMLESS["partial_rotary_factor"]:
            _unsupported(f"{name}.partial_rotary_factor", block["partial_rotary_factor"], "1.0")
    layer_types = config_json.get("layer_types")
    if layer_types is not None and set(layer_types) != {"full_attention"}:
        _unsupported("layer_types", sorted(set(layer_types)), "'full_attention' in every layer")


def _unsupported(name: str, found: Any, allowed: str) -> NoReturn:
    raise UserError(
        f"config.json: {name} is {found!r}, which changes the computation and is not implemented for llama; "
        f"allowed: {allowed}",
        "nothing was built, as it would have been built wrongly",
    )


def apply_overrides(config: Config, overrides: Mapping[str, Any]) -> Config:
    """The recipe's values over the checkpoint's: FREE ones win, the others must agree with the weights."""
    merged = from_architecture({**asdict(config), **overrides})
    for field in fields(Config):
        before, after = getattr(config, field.name), getattr(merged, field.name)
        if before != after and field.name not in FREE:
            raise UserError(
                f"architecture.{field.name}: the recipe says {after!r} and the checkpoint says {before!r}; "
                f"its weights fix this. A recipe may change: {', '.join(FREE)}",
                f"drop {field.name} from the recipe",
            )
    return merged


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
    yield _norm("model.norm.weight", hidden)
    if not config.tie_word_embeddings:
        yield weights.copy(Parameter("lm_head.weight", (vocab, hidden), "head"), "lm_head.weight")


def _layer_entries(config: Config, layer: str) -> Iterator[Entry]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention, mlp, bias = f"{layer}.self_attn", f"{layer}.mlp", config.attention_bias
    yield _norm(f"{layer}.input_layernorm.weight", hidden)
    heads = [(f"{attention}.q_proj", queries), (f"{attention}.k_proj", keys), (f"{attention}.v_proj", keys)]
    yield from _linear(f"{attention}.qkv_proj", hidden, heads, bias)
    yield from _linear(f"{attention}.o_proj", queries, [(f"{attention}.o_proj", hidden)], bias)
    yield _norm(f"{layer}.post_attention_layernorm.weight", hidden)
    gates = [(f"{mlp}.gate_proj", inner), (f"{mlp}.up_proj", inner)]
    yield from _linear(f"{mlp}.gate_up_proj", hidden, gates, config.mlp_bias)
    yield from _linear(f"{mlp}.down_proj", inner, [(f"{mlp}.down_proj", hidden)], config.mlp_bias)


def _norm(name: str, width: int) -> Entry:
    return weights.copy(Parameter(name, (width,), "norm"), name)


def _linear(name: str, inputs: int, sources: list[tuple[str, int]], bias: bool) -> Iterator[Entry]:
    """``sources`` are (module, outputs), stacked on the output axis."""
    outputs = sum(rows for _, rows in sources)
    tables = [("weight", Parameter(f"{name}.weight", (outputs, inputs), "linear"))]
    if bias:
        tables.append(("bias", Parameter(f"{name}.bias", (outputs,), "bias")))
    for suffix, parameter in tables:
        named = [(f"{module}.{suffix}", rows) for module, rows in sources]
        yield weights.copy(parameter, named[0][0]) if len(named) == 1 else weights.stack(parameter, named)


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
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_word_embeddings,
        "context_window_size": metadata["context_window_size"],
        "sliding_window_size": metadata["sliding_window_size"],
        "prefill_chunk_size": metadata["prefill_chunk_size"],
        "attention_sink_size": metadata["attention_sink_size"],
        "max_batch_size": metadata["max_batch_size"],
        "tensor_parallel_shards": metadata["tensor_parallel_shards"],
        "pipeline_parallel_stages": 1,
    }
