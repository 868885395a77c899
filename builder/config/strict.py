"""dict -> Recipe parts. Strict: an unknown key, a wrong type or a value out of range ends here, with its path, what
was found, what is allowed and where it was written."""

from __future__ import annotations

import difflib
import types
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from llm_build.core.errors import UserError

T = TypeVar("T")
Where = Callable[[str], str]  # dotted path -> " (in conf/model/x.yaml)", or ""


@dataclass(frozen=True, slots=True)
class Range:
    """Allowed numbers, both ends included; None is open. ``words`` may stand for a number."""

    low: float | None = None
    high: float | None = None
    words: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = ", or " + ", ".join(self.words) if self.words else ""
        if self.high is None:
            return f"{self.low:g} or more{words}"
        if self.low is None:
            return f"{self.high:g} or less{words}"
        return f"{self.low:g} to {self.high:g}{words}"

    def allows(self, value: float | str) -> bool:
        if isinstance(value, str):
            return value in self.words
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)


_MANY = 8  # words that an error lists beside the nearest one
Allowed = Mapping[str, "Range | Collection[str]"]  # dotted path -> what is allowed there

ALLOWED: Allowed = {
    "executor.kind": ("local", "ray"),
    "model.context_window_size": Range(1, words=("auto",)),
    "model.sliding_window_size": Range(-1, words=("auto",)),
    "model.prefill_chunk_size": Range(1, words=("auto",)),
    "model.attention_sink_size": Range(0),
    "model.max_batch_size": Range(1, 4096, ("auto",)),
    "model.tensor_parallel_shards": Range(1, 64),
    "quant.kind": ("none", "group", "int8", "e4m3", "e5m2"),
    "quant.activation": ("", "int8", "e4m3", "e5m2"),
    "quant.activation_scale": ("", "dynamic"),
    "quant.scale_per": ("group", "tensor"),
    "quant.dtype": ("float32", "float16", "bfloat16"),
    "quant.bits": Range(0, 8),
    "quant.group_size": Range(0, 4096),
    "quant.layout": ("", "NK", "KN"),
    "quant.storage_dtype": ("", "uint32"),
    "quant.max_shard_bytes": Range(4096),
    "quant.method": ("auto", "rtn", "mse", "awq", "gptq", "imported"),
    "quant.damping": Range(1e-6, 1),
    "quant.calibration.tokens": Range(32),
    "quant.calibration.window": Range(16),
    "quant.budget": Range(1, 32),
    "quant.sensitivity_tokens": Range(32),
    "target.kind": ("cpu", "cuda", "webgpu", "metal", "opencl", "vulkan", "rocm"),
    "target.library": ("so", "wasm", "tar"),
    "target.memory_bytes": Range(1),
    "target.runtime_bytes": Range(0),
    "target.max_sequences": Range(0),
    "target.gpus": Range(1, 64, ("auto",)),
    "store.mode": ("write", "readonly"),
    "store.trust": ("own", "signed", "all"),
    "store.transfers": Range(1, 64),
    "store.timeout_s": Range(0.1),
    "package.kind": ("mlc", "web_page", "ios_app", "android_app"),
    "package.sharding": ("presharded", "whole"),
    "verify.tokens": Range(2),
}


def nowhere(path: str) -> str:
    """For values that no file or command line holds."""
    return ""


def parse(cls: type[T], data: object, path: str, where: Where = nowhere, allowed: Allowed = ALLOWED) -> T:
    """A frozen dataclass from plain data. ``path`` is where the data stands in the recipe ("model").

    Raises UserError for an unknown key (with the nearest valid ones), a missing one, a wrong type or range.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{path}{where(path)}: expected a mapping, got {format_value(data)}")
    hints = _hints_of(cls)  # type: ignore[arg-type]
    known = {f.name: f for f in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise unknown_key(f"{path}.{key}" if path else str(key), known, where)
    values = {}
    for name, spec in known.items():
        at = f"{path}.{name}" if path else name
        if name in data:
            values[name] = convert(hints[name], data[name], at, where, allowed)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise UserError(f"{at}{where(path)}: missing; it has no default")
    return cls(**values)


@cache
def _hints_of(cls: type) -> dict[str, Any]:
    """A dataclass's types; looking them up takes as long as all the rest."""
    return get_type_hints(cls)


def unknown_key(path: str, known: Collection[str], where: Where = nowhere) -> UserError:
    """The error for a key that nothing reads, with the nearest names first."""
    near = nearest_names(path.rpartition(".")[2], known)
    suggestion = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(sorted(known))}"
    return UserError(
        f"{path}{where(path)}: unknown key; {suggestion}", "build --cfg job   shows every key with its value"
    )


def nearest_names(word: str, known: Collection[str]) -> list[str]:
    """Up to three names that somebody who typed ``word`` may have meant; a part of a long name counts too."""

    def likeness(name: str) -> float:
        parts = [name, *name.split("_")]
        return max(difflib.SequenceMatcher(None, word, part).ratio() - 0.01 * i for i, part in enumerate(parts))

    ranked = sorted(((likeness(name), name) for name in known), key=lambda pair: (-pair[0], pair[1]))
    return [name for score, name in ranked[:3] if score >= max(0.6, ranked[0][0] - 0.15)]


def convert(hint: Any, value: object, path: str, where: Where, allowed: Allowed) -> Any:
    """One value as its declared type, checked against what is allowed at ``path``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        hint = next((kind for kind in kinds if type(value) is kind), kinds[0])
        origin, args = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise _wrong_type(path, where, value, "a list")
        return tuple(convert(args[0], v, f"{path}[{i}]", where, allowed) for i, v in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(path, where, value, "a mapping")
        kind = args[1]
        return {k: v if kind is Any else convert(kind, v, f"{path}.{k}", where, allowed) for k, v in value.items()}
    if hasattr(hint, "__dataclass_fields__"):
        return parse(hint, value, path, where, allowed)
    return check_allowed(_scalar(hint, value, path, where), path, where, allowed)


def _scalar(hint: type, value: object, path: str, where: Where) -> Any:
    """A bool, int, float or str; an int is a float too, nothing else is converted."""
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is hint:
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise _wrong_type(path, where, value, names[hint])


def check_allowed(value: Any, path: str, where: Where, allowed: Allowed) -> Any:
    rule = allowed.get(path)
    if rule is None:
        return value
    if rule.allows(value) if isinstance(rule, Range) else value in rule:
        return value
    if isinstance(rule, Range):
        expected = f"allowed: {rule}"
    else:
        near, words = nearest_names(str(value), rule)[:1], ", ".join(filter(None, rule))
        many = near and len(rule) > _MANY  # a long list would hide what was meant
        expected = "" if many else f"allowed: {words}"
        expected += f"{'' if many else '; '}did you mean {near[0]}?" if near else ""
    raise UserError(f"{path}{where(path)}: {format_value(value)} is not possible; {expected}")


def _wrong_type(path: str, where: Where, value: object, expected: str) -> UserError:
    return UserError(f"{path}{where(path)}: expected {expected}, got {format_value(value)}")


def format_value(value: object) -> str:
    """A value as YAML would write it, short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"{value!r}"
    return text if len(text) <= 60 else text[:57] + "..."


def as_plain_data(value: Any) -> Any:
    """What ``parse`` was given: dataclasses.asdict without its copies of every text and number, which take most of the
    time of a sweep that has nothing to do."""
    if isinstance(value, (str, int, float)) or value is None:
        return value
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_plain_data(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {key: as_plain_data(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(as_plain_data, value))
    return value
