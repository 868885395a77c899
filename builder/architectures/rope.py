"""Rotary embeddings as config.json describes them: the base of the angles, and how it stretches them.

transformers 4 writes ``rope_theta`` at the top level and ``rope_scaling`` (with ``type`` or ``rope_type``);
transformers 5 writes both into ``rope_parameters``. The canonical scaling is null, or one of

    {"rope_type": "linear", "factor"}
    {"rope_type": "llama3", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_build.architectures.config_json import single_value, unsupported
from llm_build.core.errors import UserError
from llm_build.core.fields import ABOVE_ZERO

Scaling = Mapping[str, Any]

SCALINGS: dict[str, tuple[str, ...]] = {  # rope_type -> its fields, all of them numbers above 0
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ANY_BLOCK = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
REPEATED = "original_max_position_embeddings"  # transformers 5 writes it beside types that do not read it


def theta(config_json: Mapping[str, Any], spellings: tuple[str, ...] = ("rope_theta",), default: float = 1e4) -> Any:
    """The base of the angles; ``spellings`` are its names at the top level."""
    values = {place: block.get("rope_theta") for place, block in _blocks(config_json).items()}
    return single_value("rope_theta", {**values, **{name: config_json.get(name) for name in spellings}}, default)


def partial_factor(config_json: Mapping[str, Any], spellings: tuple[str, ...], default: float) -> Any:
    """The share of a head that is rotated."""
    values = {place: block.get("partial_rotary_factor") for place, block in _blocks(config_json).items()}
    names = {name: config_json.get(name) for name in spellings}
    return single_value("partial_rotary_factor", {**values, **names}, default)


def scaling(config_json: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    """The canonical scaling; UserError that names a type or a field that is not implemented."""
    values = {place: _read(place, block, model) for place, block in _blocks(config_json).items()}
    chosen: dict[str, Any] | None = single_value("rope_scaling", values, None)
    return chosen


def check_whole_heads(config_json: Mapping[str, Any], model: str) -> None:
    """For families that rotate every feature of a head."""
    for place, block in _blocks(config_json).items():
        if block.get("partial_rotary_factor") not in (None, 1.0):
            unsupported(model, f"{place}.partial_rotary_factor", block["partial_rotary_factor"], "1.0")


def _blocks(config_json: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    blocks: dict[str, Mapping[str, Any]] = {}
    for name in ("rope_parameters", "rope_scaling"):
        block = config_json.get(name)
        if block is None:
            continue
        if not isinstance(block, Mapping):
            raise UserError(f"config.json: {name} is {block!r}; allowed: null or an object")
        blocks[name] = block
    return blocks


def _read(place: str, block: Mapping[str, Any], model: str) -> dict[str, Any] | None:
    for key in ("rope_type", "type"):
        if block.get(key) not in (None, "default", *SCALINGS):
            unsupported(model, f"{place}.{key}", block[key], f"default, {', '.join(SCALINGS)}")
    kind = single_value(f"{place}.rope_type", {key: block.get(key) for key in ("rope_type", "type")}, "default")
    known = SCALINGS.get(kind, ())
    for key in block:
        if kind == "default" and key == "factor" and block[key] in (None, 1.0):
            continue  # no scaling, by any name
        if key not in (*ANY_BLOCK, *known, REPEATED):
            unsupported(model, f"{place}.{key}", block[key], f"no such field with rope_type {kind!r}")
    if kind == "default":
        return None
    for key in known:
        if block.get(key) is None:
            raise UserError(f"config.json: {place} has no {key}, which rope_type {kind!r} needs")
    canonical = {"rope_type": kind, **{key: block[key] for key in known}}
    check_scaling(canonical)
    return canonical


def check_scaling(scaling: Any) -> None:
    """For a Config's ``__post_init__``: null, or a canonical scaling with numbers that make sense."""
    if scaling is None:
        return
    kind = scaling.get("rope_type") if isinstance(scaling, Mapping) else None
    if kind not in SCALINGS or set(scaling) != {"rope_type", *SCALINGS[kind]}:
        shapes = "; ".join(f"rope_type {name} with {', '.join(keys)}" for name, keys in SCALINGS.items())
        raise UserError(f"architecture.rope_scaling: found {scaling!r}; allowed: null; {shapes}")
    for key in SCALINGS[kind]:
        value = scaling[key]
        if not ABOVE_ZERO.is_right(value):
            raise UserError(f"architecture.rope_scaling.{key}: found {value!r}; allowed: a finite number above 0")
    if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise UserError(
            f"architecture.rope_scaling: low_freq_factor {scaling['low_freq_factor']} must be below high_freq_factor "
            f"{scaling['high_freq_factor']}"
        )
