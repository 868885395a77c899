"""quantize[i]: stream the source tensors of one shard through the scheme into params_shard_<i>.bin.

Rows are read a block at a time and written where they belong, so memory stays at a few MiB whatever the tensors' sizes.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from math import prod
from typing import Any, TypeAlias

import numpy as np

from builder.architectures.weights import Parameter
from builder.core.digest import canonical
from builder.core.errors import StepError, UserError
from builder.core.step import File, InputFiles, Json, Out
from builder.quant import asymmetric, pack, scaling
from builder.quant.layout import Scheme, is_transposed, parse_scheme
from builder.quant.methods import METHODS, Method, prepare
from builder.quant.storage import NUMPY_DTYPE
from builder.quant.storage import scales as narrowed
from builder.steps import imported
from builder.steps.ports import one

Methods: TypeAlias = Callable[[int], Method]  # of a row, with which the rows of its block go

HASH_BYTES = 1 << 20
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
PROGRESS_BYTES = 8 << 20
BLOCKS_AT_ONCE = {"gptq": 32}  # whose loop over the inputs pays once for all rows of a block


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Quantize one shard.

    Args:
        params: {"index", "parameters": weight map entries with "scheme" and "pieces", "nbytes", "allow_nonfinite",
            "method": {"name": a method of quant/methods or rtn, "damping": of gptq}}.
        inputs: {source tensor: File}, for gptq {"moments/<parameter>": File of calibrate}, and for awq
            {"columns/<parameter>", "rows/<parameter>": Files of scales}.
        out: gets params_shard_<index>.bin and records.json, its entry for tensor-cache.json.

    Raises:
        UserError: a weight is NaN, infinite or overflows the scheme's dtype, and this is not allowed.
    """
    name = f"params_shard_{params['index']}.bin"
    path = out.path(name)
    counts: dict[str, pack.Counts] = {}
    progress = Progress(out, params["parameters"])
    with path.open("w+b", buffering=0) as file:
        file.truncate(params["nbytes"])
        for parameter in params["parameters"]:
            counts[parameter["name"]] = _write_parameter(parameter, params["method"], inputs, file.fileno(), progress)
            _start_writeback(file.fileno())
        _report(counts, params["allow_nonfinite"], out)
        digest = _md5(file.fileno())
    record = {
        "dataPath": name,
        "format": "raw-shard",
        "nbytes": params["nbytes"],
        "records": [_record(piece) for parameter in params["parameters"] for piece in parameter["pieces"]],
        "md5sum": digest,
    }
    out.path("records.json").write_bytes(canonical(record))


def _write_parameter(
    parameter: Mapping[str, Any], method_params: Mapping[str, Json], inputs: InputFiles, handle: int, progress: Progress
) -> pack.Counts:
    """Write the pieces of one parameter."""
    quantization = parse_scheme(parameter["scheme"])
    if imported.is_stored(parameter):
        _write_imported(parameter, quantization, inputs, handle, progress)
        return pack.Counts()
    method = _methods(parameter, method_params, inputs, quantization)
    at_once = pack.block_rows(parameter["shape"][-1]) * BLOCKS_AT_ONCE.get(method_params["name"], 1)
    writer = _writer(parameter, quantization, method, at_once)
    return _write(parameter, inputs, writer, at_once, handle, progress)


def _methods(
    parameter: Mapping[str, Any], chosen: Mapping[str, Json], inputs: InputFiles, quantization: Scheme
) -> Methods | None:
    """How this parameter is rounded; None is to nearest. The method's module is loaded by its name."""
    if chosen["name"] not in METHODS or all(piece["role"] == "plain" for piece in parameter["pieces"]):
        return None
    if quantization.kind != "group" or quantization.zero_point:  # a rule's; methods choose integers around a zero
        return None
    moments, fitted = None, quantization.for_width(parameter["shape"][-1])
    if f"moments/{parameter['name']}" in inputs:
        moments = np.load(one(inputs[f"moments/{parameter['name']}"]).path, mmap_mode="r")
    parts = len(moments) if moments is not None and moments.ndim == 3 else 1  # experts

    @lru_cache(maxsize=1)
    def part(index: int) -> Method:
        moment = None if moments is None else np.array(moments[index] if moments.ndim == 3 else moments)
        return prepare(chosen["name"], fitted, moment, chosen.get("damping", 0.0))

    return lambda row: part(row * parts // parameter["shape"][0])


def _blocks(parameter: Mapping[str, Any], inputs: InputFiles, at_once: int) -> Iterator[tuple[int, str, np.ndarray]]:
    """A parameter's rows, in order: (first row, dtype, block), block (R, width) as ``pack.RAW`` holds it.

    A block is valid until the next one is asked for.
    """
    width, row = prod(parameter["shape"][1:]), 0
    for source in parameter["sources"]:
        file = inputs[source["tensor"]]
        assert isinstance(file, File)
        if parameter["op"] == "transpose":
            yield from _columns(parameter, source, file, at_once)
            return
        with _opened(file) as handle:
            for block in _rows(handle, file.offset, source, width, at_once):
                yield row, source["dtype"], block
                row += block.shape[0]


def _rows(handle: int, offset: int, source: Mapping[str, Any], width: int, rows: int) -> Iterator[np.ndarray]:
    start, stop = source["rows"]
    raw = pack.RAW[source["dtype"]]
    buffer = np.empty((min(rows, stop - start), width), raw)
    for first in range(start, stop, rows):
        block = buffer[: min(rows, stop - first)]
        _read(handle, block, offset + first * width * raw.itemsize, source["tensor"])
        yield block


def _columns(
    parameter: Mapping[str, Any], source: Mapping[str, Any], file: File, rows: int
) -> Iterator[tuple[int, str, np.ndarray]]:
    """The source is stored (input, output): its columns are the rows of the parameter."""
    outputs, inputs = parameter["shape"]
    raw = pack.RAW[source["dtype"]]
    whole = np.memmap(file.path, np.uint8, "r", file.offset, (inputs, outputs * raw.itemsize))
    for start in range(0, outputs, rows):
        stop = min(outputs, start + rows)
        columns = np.ascontiguousarray(whole[:, start * raw.itemsize : stop * raw.itemsize]).view(raw)
        yield start, source["dtype"], np.ascontiguousarray(columns.T)


@contextmanager
def _opened(file: File) -> Iterator[int]:
    handle = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _read(handle: int, block: np.ndarray, offset: int, tensor: str) -> None:
    view = block.view(np.uint8).reshape(-1).data
    while view:
        count = os.preadv(handle, [view], offset)
        if not count:
            raise StepError(f"tensor {tensor}: its file became shorter during the build", "run the same build again")
        view, offset = view[count:], offset + count


class Progress:
    """Counts source bytes, and speaks every few MiB."""

    def __init__(self, out: Out, parameters: list[dict[str, Any]]) -> None:
        self.out, self.done, self.reported = out, 0, 0
        self.total = sum(
            (source["rows"][1] - source["rows"][0]) * prod(source["shape"][1:]) * pack.RAW[source["dtype"]].itemsize
            for parameter in parameters
            for source in parameter["sources"]
        )

    def add(self, nbytes: int, label: str) -> None:
        self.done += nbytes
        if self.done - self.reported >= PROGRESS_BYTES or self.done >= self.total:
            self.out.progress(self.done, self.total, "B", label)
            self.reported = self.done


def _writer(parameter: Mapping[str, Any], quantization: Scheme, method: Methods | None, at_once: int) -> Plain | Packed:
    """``at_once``: rows of a block, at most."""
    pieces = {piece["role"]: piece for piece in parameter["pieces"]}
    rows, width = parameter["shape"][0], prod(parameter["shape"][1:])
    if "plain" in pieces:
        return Plain(pieces["plain"], min(rows, at_once), width)
    shape = Parameter(parameter["name"], (rows, width), parameter["kind"])
    transposed = is_transposed(shape, quantization)
    return Packed(pieces, min(rows, at_once), width, quantization, transposed, method)


def _write(
    parameter: Mapping[str, Any], inputs: InputFiles, writer: Plain | Packed, at_once: int, handle: int,
    progress: Progress,
) -> pack.Counts:  # fmt: skip
    counts, scaled = pack.Counts(), scaling.read(parameter["name"], parameter["shape"][0], inputs)

    def blocks() -> Iterator[tuple[int, str, np.ndarray, int]]:
        for row, dtype, block in _blocks(parameter, inputs, at_once):
            yield row, *((dtype, block) if scaled is None else _scaled(scaled, row, dtype, block)), block.nbytes

    if isinstance(writer, Packed) and writer.whole:
        for _, dtype, block, _ in blocks():
            writer.measure(dtype, block)
    for row, dtype, block, nbytes in blocks():
        counts.add(writer.write(handle, row, dtype, block))
        progress.add(nbytes, parameter["name"])
    return counts


def _scaled(scaled: scaling.Scaling, row: int, dtype: str, block: np.ndarray) -> tuple[str, np.ndarray]:
    """A block as float32, scaled, with its dtype."""
    weights = np.empty(block.shape, np.float32)
    pack.widen_exactly(block, dtype, weights)
    scaled.apply(weights, row)
    return "F32", weights.view(pack.RAW["F32"])


class Plain:
    """Writes an unquantized parameter, cast to its dtype."""

    def __init__(self, piece: Mapping[str, Any], rows: int, width: int) -> None:
        self.offset = piece["offset"]
        self.dtype = piece["dtype"]
        self.out = np.empty((rows, width), NUMPY_DTYPE[self.dtype])

    def write(self, handle: int, row: int, dtype: str, block: np.ndarray) -> pack.Counts:
        out = self.out[: block.shape[0]]
        counts = pack.cast(block, dtype, out, self.dtype)
        _store(handle, out, self.offset + row * out.shape[1] * out.itemsize)
        return counts


class Packed:
    """Writes the words, scales and zero points of a parameter, or those of them that this shard holds."""

    def __init__(
        self, pieces: Mapping[str, Mapping[str, Any]], rows: int, width: int, quantization: Scheme, transposed: bool,
        method: Methods | None,
    ) -> None:  # fmt: skip
        self.pieces, self.scheme, self.width, self.transposed = pieces, quantization, width, transposed
        self.rows, self.method = rows, method
        fitted = quantization.for_width(width)
        groups = -(-width // fitted.group_size)
        self.words = np.empty((self.rows, groups * fitted.words_per_group), NUMPY_DTYPE[quantization.storage_dtype])
        self.scales = np.empty((self.rows, groups), NUMPY_DTYPE[quantization.scale_dtype])
        self.zeros = np.empty((self.rows, quantization.zero_words(groups)), NUMPY_DTYPE[quantization.storage_dtype])
        self.packers: dict[str, pack.Packer] = {}
        self.whole = quantization.scale_per == "tensor"  # one scale: all blocks are measured before one is written
        self.largest = np.zeros(1, np.float32)  # magnitude that was measured

    def measure(self, dtype: str, block: np.ndarray) -> None:
        np.maximum(self.largest, self._packer(dtype).largest(block), out=self.largest)

    def _packer(self, dtype: str) -> pack.Packer:
        if dtype not in self.packers:  # stacked tensors may differ in dtype
            kind = asymmetric.Packer if self.scheme.zero_point else pack.Packer
            self.packers[dtype] = kind(self.rows, self.width, dtype, self.scheme)
        return self.packers[dtype]

    def write(self, handle: int, row: int, dtype: str, block: np.ndarray) -> pack.Counts:
        packer = self._packer(dtype)
        packer.method = self.method(row) if self.method else None
        if self.whole:
            packer.tensor_scale, _ = narrowed(
                self.largest / np.float32(self.scheme.max_magnitude), self.scheme.scale_dtype
            )
        words, scales = self.words[: block.shape[0]], self.scales[: block.shape[0]]
        zeros = self.zeros[: block.shape[0]]
        if isinstance(packer, asymmetric.Packer):
            counts = packer.pack(block, words, scales, zeros)
        else:
            counts = packer.pack(block, words, scales) if "weight" in self.pieces else packer.scales(block, scales)
        for role, array in (("weight", words), ("scale", scales), ("zero", zeros)):
            if role in self.pieces and self.transposed:
                _store_columns(handle, array, self.pieces[role], row)
            elif role in self.pieces and role == "scale" and self.whole:
                _store(handle, array[:1], self.pieces[role]["offset"])
            elif role in self.pieces:
                _store(handle, array, self.pieces[role]["offset"] + row * array.shape[1] * array.itemsize)
        return counts


def _write_imported(
    parameter: Mapping[str, Any], quantization: Scheme, inputs: InputFiles, handle: int, progress: Progress
) -> None:
    """Write a parameter that the checkpoint holds quantized, as it is."""
    pieces = {piece["role"]: piece for piece in parameter["pieces"]}

    def store(role: str, row: int, rows: np.ndarray) -> None:
        if role in pieces:
            _store(handle, np.ascontiguousarray(rows), pieces[role]["offset"] + row * rows.shape[1] * rows.itemsize)

    def done(weights: int, dtype: str) -> None:
        progress.add(weights * pack.RAW[dtype].itemsize, parameter["name"])

    imported.write(parameter, quantization, inputs, store, done)


def _store(handle: int, array: np.ndarray, offset: int) -> None:
    view = array.view(np.uint8).reshape(-1).data
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count


def _store_columns(handle: int, array: np.ndarray, piece: Mapping[str, Any], column: int) -> None:
    """Rows of ``array`` become columns of the piece, through a mapping of the file: they are a few bytes each."""
    with mmap.mmap(handle, 0) as mapped:
        whole = np.frombuffer(mapped, array.dtype, piece["nbytes"] // array.itemsize, piece["offset"])
        whole.reshape(piece["shape"])[:, column : column + array.shape[0]] = array.T
        del whole  # the mapping cannot be closed while it is looked at


def _start_writeback(handle: int) -> None:
    """Let the disk begin now: the store syncs the whole shard at the end, and would wait for all of it then."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "sync_file_range"):  # Linux; only a hint, so its result does not matter
        zero = ctypes.c_int64(0)
        libc.sync_file_range(handle, zero, zero, SYNC_FILE_RANGE_WRITE)


def _report(counts_of: Mapping[str, pack.Counts], allow_nonfinite: bool, out: Out) -> None:
    bad = {name: counts for name, counts in counts_of.items() if counts.nonfinite or counts.overflowed}
    if bad and not allow_nonfinite:
        raise UserError(
            f"{_describe_counts(bad)}; allowed: finite weights that the scheme's dtype can hold",
            "build model.allow_nonfinite=true to build it all the same",
        )
    if bad:
        out.warn(_describe_counts(bad))
        out.fact("weights_nonfinite", sum(counts.nonfinite for counts in bad.values()))
        out.fact("weights_overflowed", sum(counts.overflowed for counts in bad.values()))
    saturated = {name: counts.saturated for name, counts in counts_of.items() if counts.saturated}
    if saturated:
        worst = max(saturated, key=lambda name: saturated[name])
        out.warn(f"{sum(saturated.values())} scales were too large for their dtype and saturated, most in {worst}")
        out.fact("scales_saturated", sum(saturated.values()))


def _describe_counts(bad: Mapping[str, pack.Counts]) -> str:
    shown = []
    for name, counts in list(bad.items())[:5]:
        kinds = [(counts.nonfinite, "NaN or infinite"), (counts.overflowed, "too large for the dtype of the scheme")]
        shown.append(f"{name}: " + ", ".join(f"{number} weights {kind}" for number, kind in kinds if number))
    return "; ".join(shown) + (f"; and {len(bad) - 5} more parameters" if len(bad) > 5 else "")


def _md5(handle: int) -> str:
    """The tensor cache asks for md5; it is no protection and is not used as one."""
    hasher, buffer, offset = hashlib.md5(usedforsecurity=False), memoryview(bytearray(HASH_BYTES)), 0
    while count := os.preadv(handle, [buffer], offset):
        hasher.update(buffer[:count])
        offset += count
    return hasher.hexdigest()


def _record(piece: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": piece["name"],
        "shape": piece["shape"],
        "dtype": piece["dtype"],
        "format": "raw",
        "nbytes": piece["nbytes"],
        "byteOffset": piece["offset"],
    }
