"""The record of a finished step: one JSON manifest per key, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Literal, NamedTuple

from builder.core.digest import canonical, sha256_hex
from builder.core.step_io import Json


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


Problem = Literal["", "absent", "garbage", "missing", "damaged"]


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
    body, _, seal = raw.partition(b"\n")
    if seal != b'"sha256:' + sha256_hex(body).encode() + b'"\n':
        return None
    fields = json.loads(body)
    if fields["key"] != key:
        return None
    fields["outputs"] = {name: Output(**output) for name, output in fields["outputs"].items()}
    fields["warnings"] = tuple(fields["warnings"])
    return Record(**fields)
