"""The safetensors file: 8 bytes of header length (little-endian), a JSON header, then the tensors' bytes without gaps.

Read strictly: whatever is not exactly so is a UserError that names the file, what was found and what is allowed.
Format: https://huggingface.co/docs/safetensors (header {"name": {"dtype", "shape", "data_offsets": [begin, end]}}).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from llm_build.core.errors import UserError
from llm_build.core.fields import show_python
from llm_build.core.json_text import NotJson, parse_json
from llm_build.core.names import is_inside
from llm_build.core.small_file import hollow_bytes, open_file

_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_LENGTH_BYTES = 8
_MOST_AXES = 64  # torch's own limit


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file; ``offset`` counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(path: Path, name: str) -> list[Tensor]:
    """The tensors of a file, in the order of their bytes; ``name`` is what messages call the file.

    Raises:
        UserError: the file cannot be read, is truncated, or its header is not JSON, lies about offsets or sizes,
            names a tensor twice or has a dtype that is not in the format.
    """
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if (written := hollow_bytes(file.fileno())) is not None:
                _bad(name, f"has {size} bytes, of which {written} are on the disk")
            text = _header_text(file, size, name)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}", f"look at {path}") from error
    data_start = _LENGTH_BYTES + len(text)
    header = _parse(text, name)
    tensors = [_tensor(key, entry, data_start, name) for key, entry in header.items() if key != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_spans(tensors, data_start, size, name)
    return tensors


def _bad(name: str, problem: str) -> NoReturn:
    raise UserError(f"{name}: {problem}", "the file is damaged or was not written as safetensors: fetch it again")


def _header_text(file: BinaryIO, size: int, name: str) -> bytes:
    if size < _LENGTH_BYTES:
        _bad(name, f"truncated: {size} bytes; a safetensors file has at least {_LENGTH_BYTES}")
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > _MAX_HEADER_BYTES:
        _bad(name, f"header length is {length} bytes; allowed: up to {_MAX_HEADER_BYTES}")
    if _LENGTH_BYTES + length > size:
        _bad(name, f"truncated: its header takes {length} bytes, the file has {size - _LENGTH_BYTES} after the length")
    return file.read(length)


def _parse(text: bytes, name: str) -> dict[str, Any]:
    try:
        header = parse_json(text, max_depth=None, unique=True)
    except NotJson as error:
        _bad(name, f"header is not JSON: {error}")
    if not isinstance(header, dict):
        _bad(name, f"header is a JSON {type(header).__name__}; allowed: an object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _bad(name, "__metadata__ is not an object of strings")
    return header


def _tensor(key: str, entry: Any, data_start: int, name: str) -> Tensor:
    if not is_inside(key):
        _bad(name, f"tensor {key[:80]!r}: its name leads out of a folder; allowed: parts of letters, dots, digits")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _bad(name, f"header entry of {key!r} is not an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BYTES:
        _bad(name, f"tensor {key!r} has dtype {show_python(dtype)}; allowed: {', '.join(_DTYPE_BYTES)}")
    if not _naturals(shape) or len(shape) > _MOST_AXES:
        _bad(name, f"tensor {key!r} has shape {show_python(shape)}; allowed: up to {_MOST_AXES} whole numbers from 0")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        found = show_python(offsets)
        _bad(name, f"tensor {key!r} has data_offsets {found}; allowed: [begin, end] with 0 <= begin <= end")
    nbytes = offsets[1] - offsets[0]
    expected = prod(shape) * _DTYPE_BYTES[dtype]
    if nbytes != expected:
        _bad(name, f"tensor {key!r}: data_offsets span {nbytes} bytes; {dtype} {shape} takes {expected}")
    return Tensor(key, dtype, tuple(shape), data_start + offsets[0], nbytes)


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_spans(tensors: Sequence[Tensor], data_start: int, size: int, name: str) -> None:
    end, before = data_start, "the header"
    for tensor in tensors:
        if tensor.offset != end:
            kind = "overlaps" if tensor.offset < end else "leaves a hole after"
            _bad(name, f"tensor {tensor.name!r} {kind} {before}: it begins at byte {tensor.offset}; expected {end}")
        end, before = tensor.offset + tensor.nbytes, repr(tensor.name)
    if size < end:
        _bad(name, f"truncated: {size} bytes; its header describes {end}")
    if size > end:
        _bad(name, f"{size - end} bytes after the last tensor; the header describes {end} bytes, the file has {size}")


def write_header(file: BinaryIO, tensors: Iterable[tuple[str, str, Sequence[int]]]) -> None:
    """Write the length and the header for (name, dtype, shape) whose bytes follow in this order, without gaps."""
    header, end = {}, 0
    for name, dtype, shape in tensors:
        begin, end = end, end + prod(shape) * _DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
