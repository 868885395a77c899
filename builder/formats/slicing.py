"""A stored tensor cut for several ranks: what each of them has, and what that is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

WORD_BITS = 32


@dataclass(frozen=True, slots=True)
class Slicing:
    """How an array is cut along ``axis``, which is made of ``blocks`` times the ``parts``, each of (units, width): runs
    of that width, dealt out one after the other. Of fewer units than ranks each goes to several ranks. ``bits`` > 0:
    the axis holds words of 32 bits, and the parts count fields of that many bits in them.
    """

    axis: int
    parts: tuple[tuple[int, int], ...]
    blocks: int = 1
    bits: int = 0


def tp_shard_name(name: str, rank: int) -> str:
    """What a rank's part of a stored tensor is called (mlc-ai/mlc-llm, python/mlc_llm/support/preshard.py)."""
    return f"{name}_shard-{rank}"


def slicing_to_json(slicing: Slicing | None) -> dict[str, Any] | None:
    return None if slicing is None else asdict(slicing)


def slicing_from_json(table: Mapping[str, Any] | None) -> Slicing | None:
    """The inverse of ``slicing_to_json``."""
    if table is None:
        return None
    parts = tuple((units, width) for units, width in table["parts"])
    return Slicing(table["axis"], parts, table["blocks"], table["bits"])


def tp_shard_ranges(slicing: Slicing, rank: int, ranks: int) -> list[tuple[int, int]]:
    """A rank's [start, stop) along the axis, in the order in which they are joined; neighbours are one run."""
    ranges: list[tuple[int, int]] = []
    start = 0
    for units, width in slicing.parts * slicing.blocks:
        first = start + rank * units // ranks * width
        stop = first + max(1, units // ranks) * width
        if ranges and ranges[-1][1] == first:
            first = ranges.pop()[0]
        ranges.append((first, stop))
        start += units * width
    return ranges


def take_tp_shard(array: np.ndarray, slicing: Slicing | None, rank: int, ranks: int) -> np.ndarray:
    """A rank's part of a stored tensor: a view of ``array`` where that is one run, else a copy."""
    import numpy as np

    if slicing is None:
        return array
    own = tp_shard_ranges(slicing, rank, ranks)
    if slicing.bits:
        return _fields(array, slicing.bits, *own[0])
    parts = [array[start:stop] if slicing.axis == 0 else array[:, start:stop] for start, stop in own]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, slicing.axis)


def _fields(words: np.ndarray, bits: int, start: int, stop: int) -> np.ndarray:
    """Fields [start, stop) of each row of ``words`` (R, W) uint32, lowest bits first, in as few words as hold them."""
    import numpy as np

    per_word = WORD_BITS // bits
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(bits)
    fields = words[:, :, None] >> shifts & np.uint32((1 << bits) - 1)
    own = fields.reshape(len(words), -1)[:, start:stop]
    padded = np.zeros((len(words), -(-(stop - start) // per_word) * per_word), np.uint32)
    padded[:, : stop - start] = own
    joined: np.ndarray = np.bitwise_or.reduce(padded.reshape(len(words), -1, per_word) << shifts, axis=2)
    return joined
