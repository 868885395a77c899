"""The record of a finished step: one JSON manifest per key, and how it is read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from llm_build.core.digest import canonical, sha256_hex
from llm_build.core.json_text import parse_json
from llm_build.core.names import are_digests, are_inside
from llm_build.core.step_io import Json

_LATEST = 1e11  # seconds: the year 5138


class Output(NamedTuple):
    """A result: a blob of the store (``of`` empty), or a slice of "watch:<name>" or "output:<name>"."""

    digest: str
    nbytes: int
    mtime_ns: int = 0
    of: str = ""
    offset: int = 0


class Record(NamedTuple):
    """What a step made and from what. ``groups`` keeps {port: {name: digest}} so that a reason can name the one file
    of many that changed; ``parts`` is what the key is the sha256 of."""

    key: str
    parts: Mapping[str, Json]
    outputs: Mapping[str, Output]
    groups: Mapping[str, Mapping[str, str]] = {}
    facts: Mapping[str, Json] = {}
    warnings: tuple[str, ...] = ()
    started: float = 0.0  # unix time, seconds
    seconds: float = 0.0
    nbytes: int = 0
    peak_memory_bytes: int = 0


Problem = Literal["", "absent", "garbage", "missing", "damaged", "foreign"]


class Lookup(NamedTuple):
    """A record, or why there is none that can be used (``detail``: which output, in words)."""

    record: Record | None
    problem: Problem = ""
    detail: str = ""


class LastResult(NamedTuple):
    """The last result of one step of one goal."""

    key: str
    used: float  # unix time, seconds
    seconds: float  # how long the step took when it ran


def encode_record(record: Record) -> bytes:
    """Two lines of JSON: the record, and the sha256 of the first line (a flipped bit makes it garbage)."""
    body = canonical(
        {**record._asdict(), "outputs": {name: output._asdict() for name, output in record.outputs.items()}}
    )
    return body + b'\n"sha256:' + sha256_hex(body).encode() + b'"\n'


def decode_record(raw: bytes, key: str) -> Record | None:
    """None when the bytes are not the whole, undamaged manifest of ``key``."""
    body, _, rest = raw.partition(b"\n")
    if not rest.startswith(b'"sha256:' + sha256_hex(body).encode() + b'"\n') or not rest.endswith(b'"\n'):
        return None  # lines of core/seals may follow the digest
    try:
        fields = parse_json(body, max_depth=None)  # who writes a store may have sealed anything
        fields["outputs"] = {name: Output(**output) for name, output in fields["outputs"].items()}
        fields["warnings"] = tuple(fields["warnings"])
        record = Record(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if record.key == key and _is_well_formed(record) else None


def _are_parts(parts: Mapping[str, Json]) -> bool:
    """Whether what a key was made of has the types that a reason reads."""
    watch = parts.get("watch", {})
    return (
        type(parts.get("function", "")) is type(parts.get("code", "")) is str
        and all(_are_names(parts.get(name, {})) for name in ("tools", "inputs"))
        and isinstance(watch, dict)
        and all(isinstance(state, list) and len(state) > 2 for state in watch.values())
    )


def _are_names(value: Json) -> bool:
    return isinstance(value, dict) and {*map(type, value.values())} <= {str}


def _is_there(of: str, record: Record) -> bool:
    """Whether a slice is of something that the step watched, or of a whole output of its own."""
    kind, _, name = of.partition(":")
    if kind == "watch":
        return are_inside([name]) and name in record.parts.get("watch", {name: []})
    return kind == "output" and name in record.outputs and not record.outputs[name].of


def _is_well_formed(record: Record) -> bool:
    """Whether all is of its type, no name leads out of a folder and no digest out of the store."""
    outputs = record.outputs.values()
    numbers = {type(number) for output in outputs for number in (output.nbytes, output.mtime_ns, output.offset)}
    return (
        numbers <= {int}
        and min((number for output in outputs for number in (output.nbytes, output.offset)), default=0) >= 0
        and are_inside(record.outputs)
        and are_digests(output.digest for output in outputs)
        and all(type(output.of) is str for output in outputs)
        and isinstance(record.parts, dict)
        and _are_parts(record.parts)
        and all(_is_there(of, record) for of in {output.of for output in outputs if output.of})
        and isinstance(record.groups, dict)
        and all(isinstance(group, dict) and {*map(type, group.values())} <= {str} for group in record.groups.values())
        and isinstance(record.facts, dict)
        and {*map(type, record.warnings)} <= {str}
        and {type(record.started), type(record.seconds)} <= {int, float}
        and 0 <= record.started < _LATEST
        and 0 <= record.seconds < _LATEST
        and {type(record.nbytes), type(record.peak_memory_bytes)} <= {int}
    )
