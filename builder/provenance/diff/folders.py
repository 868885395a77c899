"""What differs between the weights of two built folders, by tensor: names, shapes, types, bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from llm_build.core.errors import StepError, UserError
from llm_build.core.small_file import open_file, read_small
from llm_build.formats.tensorcache import read_tensor_cache

INDEX = "tensor-cache.json"
READ_BYTES = 1 << 20


class _Stored(NamedTuple):
    """A tensor and where it lies."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    shard: str
    offset: int

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Tensors(NamedTuple):
    """``changed``: same shape and type, other bytes. ``shards``: the files of the second folder they lie in."""

    added: dict[str, str]
    removed: dict[str, str]
    reshaped: dict[str, tuple[str, str]]
    changed: tuple[str, ...]
    shards: tuple[str, ...]
    same: int


def _tensors_of(folder: Path) -> dict[str, _Stored]:
    """Of tensor-cache.json, in its order; empty when there is none. Raises UserError for what is no such index."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        records = read_tensor_cache(read_small(path), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return {
        name: _Stored(each.shape, each.dtype, each.nbytes, each.shard, each.offset) for name, each in records.items()
    }


def compare(last: Path, now: Path, equal: Mapping[str, bool]) -> Tensors:
    """``equal``: {shard: whether both folders have the same file}; tensors at one place of such a shard are not read.

    Raises StepError for a shard that ends before its tensors do, or is not there."""
    olds, news = _tensors_of(last), _tensors_of(now)
    both = [name for name in news if name in olds]
    alike = [name for name in both if olds[name][:3] == news[name][:3]]
    changed = [
        name
        for name in alike
        if not (equal.get(news[name].shard) and olds[name][3:] == news[name][3:])
        and not _same_bytes(last, olds[name], now, news[name])
    ]
    return Tensors(
        added={name: str(news[name]) for name in news if name not in olds},
        removed={name: str(olds[name]) for name in olds if name not in news},
        reshaped={name: (str(olds[name]), str(news[name])) for name in both if olds[name][:3] != news[name][:3]},
        changed=tuple(changed),
        shards=tuple(dict.fromkeys(news[name].shard for name in changed)),
        same=len(alike) - len(changed),
    )


def _same_bytes(last: Path, old: _Stored, now: Path, new: _Stored) -> bool:
    try:
        with open_file(last / old.shard) as left, open_file(now / new.shard) as right:
            left.seek(old.offset)
            right.seek(new.offset)
            return all(a == b for a, b in zip(_pieces(left, old), _pieces(right, new), strict=True))
    except OSError as error:
        raise StepError(f"{error.filename}: cannot be read: {error.strerror}", "build") from error


def _pieces(file: BinaryIO, tensor: _Stored) -> Iterator[bytes]:
    left = tensor.nbytes
    while left:
        piece = file.read(min(READ_BYTES, left))
        if len(piece) < min(READ_BYTES, left):
            raise StepError(
                f"{file.name}: ends before its tensors do", "build verify-provenance says what else changed"
            )
        left -= len(piece)
        yield piece
