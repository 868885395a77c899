"""What every family does with config.json and with the architecture dict made from it: read fields, hold them to their
types, and refuse by name what would change the computation.

``model`` is the family's name for messages; ``Config`` a frozen dataclass whose fields are the architecture's keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from difflib import get_close_matches
from typing import Any, NoReturn, TypeVar

from llm_build.architectures.fields import ANY_SIZE, MOST, check_sizes
from llm_build.architectures.foreign import FOREIGN
from llm_build.core.errors import UserError
from llm_build.core.fields import is_number, is_whole, show_python

T = TypeVar("T")

_HARMLESS: dict[str, tuple[Any, ...]] = {  # fields that would change any decoder, and the values that do not
    "use_sliding_window": (None, False),
    "add_cross_attention": (None, False),
    "is_encoder_decoder": (None, False),
    "quantization_config": (None,),
}
SILU: dict[str, tuple[Any, ...]] = {"hidden_act": ("silu", "swish")}
WHOLE_HEADS: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (None, 1.0)}
NO_WINDOW: dict[str, tuple[Any, ...]] = {"sliding_window": (None,)}


def refuse(name: str, value: Any, allowed: str) -> NoReturn:
    raise UserError(
        f"architecture.{name}: found {show_python(value)}; allowed: {allowed}", "compare with the model's config.json"
    )


def unsupported(model: str, name: str, value: Any, allowed: str) -> NoReturn:
    raise UserError(
        f"config.json: {name} is {show_python(value)}, which changes the computation and is not implemented for "
        f"{model}; allowed: {allowed}",
        "nothing was built, as it would have been built wrongly",
    )


def check_types(config: Any) -> None:
    """Every field of a Config: ints from 1 to what a model may have (None where the type has it), floats finite and
    above 0, bools. For its ``__post_init__``."""
    for field in fields(config):
        check_type(field.name, getattr(config, field.name), str(field.type))
    check_sizes(asdict(config))


def check_type(name: str, value: Any, kind: str) -> None:
    if kind == "int | None" and value is not None:
        kind = "int"
    if kind == "bool" and not isinstance(value, bool):
        refuse(name, value, "true or false")
    most = MOST.get(name, ANY_SIZE)
    if kind == "int" and not (is_whole(value) and 1 <= value <= most):
        refuse(name, value, f"a whole number of at least 1, and at most {most}")
    if kind == "float" and not (isinstance(value, float) and is_number(value) and value > 0):
        refuse(name, value, "a finite number above 0")


def check_heads(query_heads: int, key_heads: int, head_dim: int) -> None:
    if query_heads % key_heads:
        refuse("num_key_value_heads", key_heads, f"a divisor of num_attention_heads ({query_heads})")
    if head_dim % 2:
        refuse("head_dim", head_dim, "an even number (rotary embeddings turn pairs)")


def strict(cls: type[T], model: str, architecture: Mapping[str, Any]) -> T:
    """The canonical dict -> Config; the inverse of ``dataclasses.asdict``. Unknown and missing keys are UserErrors."""
    kinds = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
    for key in architecture:
        if key not in kinds:
            near = get_close_matches(key, kinds, n=1) or kinds
            raise UserError(
                f"architecture.{key} is not a key of {_with_article(model)}; did you mean {', '.join(near)}?"
            )
    for key in kinds:
        if key not in architecture:
            raise UserError(f"architecture.{key} is missing; {_with_article(model)} has: {', '.join(kinds)}")
    return cls(**{key: as_float(architecture[key], kind) for key, kind in kinds.items()})


def _with_article(model: str) -> str:
    return f"{'an' if model[0] in 'aeiou' else 'a'} {model}"


def as_float(value: Any, kind: str) -> Any:
    """JSON and YAML write 10000 for 10000.0. What no float holds stays as it is."""
    return float(value) if kind == "float" and is_whole(value) and is_number(value) else value


def merge(config: T, model: str, overrides: Mapping[str, Any], free: Sequence[str]) -> T:
    """The recipe's values over the checkpoint's: free ones win, the others must agree with the weights. A recipe may
    untie the head, as convert asks for where the weights hold one of their own."""
    merged = strict(type(config), model, {**asdict(config), **overrides})  # type: ignore[call-overload]
    for field in fields(config):  # type: ignore[arg-type]
        before, after = getattr(config, field.name), getattr(merged, field.name)
        unties = field.name == "tie_word_embeddings" and before is True
        if before != after and field.name not in free and not unties:
            raise UserError(
                f"architecture.{field.name}: the recipe says {after!r} and the checkpoint says {before!r}; "
                f"its weights fix this. A recipe may change: {', '.join(free)}",
                f"drop {field.name} from the recipe",
            )
    return merged


def required(config_json: Mapping[str, Any], key: str, model: str) -> Any:
    if config_json.get(key) is None:
        raise UserError(f"config.json has no {key}, which {_with_article(model)} needs", "is config.json complete?")
    return config_json[key]


def optional(config_json: Mapping[str, Any], key: str, default: Any) -> Any:
    """transformers writes null for "the default"."""
    value = config_json.get(key)
    return default if value is None else value


def head_dim(config_json: Mapping[str, Any]) -> Any:
    """``head_dim``, or hidden_size / num_attention_heads where it is not given."""
    if config_json.get("head_dim") is not None:
        return config_json["head_dim"]
    hidden_size, heads = config_json["hidden_size"], config_json["num_attention_heads"]
    check_type("hidden_size", hidden_size, "int")
    check_type("num_attention_heads", heads, "int")
    if hidden_size % heads:
        refuse("num_attention_heads", heads, f"a divisor of hidden_size ({hidden_size}), as head_dim is not given")
    return hidden_size // heads


def check_maths(
    model: str,
    config_json: Mapping[str, Any],
    *harmless: Mapping[str, tuple[Any, ...]],
    reads: Sequence[str] = (),
) -> None:
    """Raises UserError for a field outside the tables of harmless values, and for layers without full attention.

    ``reads``: fields of ``foreign.FOREIGN`` that are this family's own.
    """
    foreign = {name: allowed for name, allowed in FOREIGN.items() if name not in reads}
    for table in (_HARMLESS, foreign, *harmless):
        for name, allowed in table.items():
            if name in config_json and config_json[name] not in allowed:
                unsupported(model, name, config_json[name], " or ".join(repr(value) for value in allowed))
    layer_types = config_json.get("layer_types")
    if layer_types is not None and set(layer_types) != {"full_attention"}:
        unsupported(model, "layer_types", sorted(set(layer_types)), "'full_attention' in every layer")


def full_attention_every(model: str, config_json: Mapping[str, Any], layers: int, default: Any) -> Any:
    """n, where layers n - 1, 2n - 1, ... are the ones with full attention; UserError for any other pattern."""
    layer_types = config_json.get("layer_types")
    if layer_types is None:
        return default
    first = layer_types.index("full_attention") + 1 if "full_attention" in layer_types else layers + 1
    for every in (default, first):
        if layer_types == ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(layers)]:
            return every
    raise UserError(
        f"config.json: layer_types is {show_python(layer_types)}, which is not implemented for {model}; allowed: "
        "full_attention in every n-th layer and sliding_attention in the others",
        "nothing was built, as it would have been built wrongly",
    )


def single_value(name: str, values: Mapping[str, Any], default: Any) -> Any:
    """One value that config.json may give in several places: {place: value, or None where it does not}."""
    given = {place: value for place, value in values.items() if value is not None}
    first = next(iter(given.values()), default)
    if any(value is not first and value != first for value in given.values()):
        raise UserError(
            f"config.json gives {name} twice with different values: {show_python(given)}",
            "keep the one that the model was trained with",
        )
    return first


def sizes(
    config_json: Mapping[str, Any],
    model: str,
    *,
    key_heads: int | None = None,
    head_width: int | None = None,
    inner: str = "intermediate_size",
) -> dict[str, Any]:
    """The sizes that every decoder has; ``inner`` is what the family calls the width of its MLPs. Where config.json
    does not give them, there are ``key_heads`` of keys (None: as many as of queries), of ``head_width`` features (None:
    hidden_size / num_attention_heads)."""
    heads = required(config_json, "num_attention_heads", model)
    required(config_json, "hidden_size", model)
    return {
        "hidden_size": config_json["hidden_size"],
        inner: required(config_json, inner, model),
        "num_hidden_layers": required(config_json, "num_hidden_layers", model),
        "num_attention_heads": heads,
        "num_key_value_heads": optional(config_json, "num_key_value_heads", key_heads or heads),
        "head_dim": optional(config_json, "head_dim", head_width) if head_width else head_dim(config_json),
        "vocab_size": required(config_json, "vocab_size", model),
    }


def settings(config_json: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the same name in config.json and in Config, with transformers' defaults."""
    return {key: optional(config_json, key, default) for key, default in defaults.items()}


_CHAT_NAMES = {"rope_theta": "position_embedding_base"}  # Config -> MLC
_CHAT_FIRST = ("hidden_size", "intermediate_size", "num_attention_heads")  # then as in Config
_CHAT_OMITS = {"max_position_embeddings", "attention_bias", "mlp_bias", "sliding_window", "rotary_dim", "hidden_act"}


def chat_fields(config: Any) -> dict[str, Any]:
    """A Config's fields under MLC's names, but those that MLC's runtimes have no use for."""
    own = [field.name for field in fields(config) if field.name not in _CHAT_OMITS]
    names = [*(name for name in _CHAT_FIRST if name in own), *(name for name in own if name not in _CHAT_FIRST)]
    return {_CHAT_NAMES.get(name, name): getattr(config, name) for name in names}


def run_time_sizes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The part of mlc-chat-config.json's ``model_config`` that is the same for every family."""
    keys = (
        "context_window_size",
        "sliding_window_size",
        "prefill_chunk_size",
        "attention_sink_size",
        "max_batch_size",
        "tensor_parallel_shards",
    )
    return {**{key: metadata[key] for key in keys}, "pipeline_parallel_stages": 1}
