"""quantize[i]: stream the source tensors of one shard through the scheme into params_shard_<i>.bin.

Rows are read a block at a time and written where they belong, so memory stays at a few MiB whatever the tensors' sizes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from math import prod

import numpy as np

from llm_build.architectures.weights import Entry, Slice, read_entry
from llm_build.core import system
from llm_build.core.digest import canonical
from llm_build.core.errors import StepError, UserError
from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.core.units import count_of
from llm_build.formats.tensorcache import TensorRecord, shard_entry
from llm_build.quant import pack, scaling
from llm_build.quant.layout import Scheme, is_transposed, parse_scheme
from llm_build.quant.methods import METHODS, Method, Search, prepare
from llm_build.quant.methods.mse import STEPS
from llm_build.quant.placement import PlacedTensor, placed_from_json
from llm_build.steps import imported
from llm_build.steps.ports import one
from llm_build.steps.shard_file import Methods, PackedWriter, Placed, PlainWriter, md5, store

_PROGRESS_BYTES = 8 << 20
_SEARCHING = ("mse", "awq")
_SEARCH = "llm_build.lowering.best_scales"  # by name: it is in no key, for it computes what quant/methods/mse.py says
_COMPILED_FROM_WEIGHTS = 1 << 22  # numpy takes a second for 30 million, loading TVM and compiling 1.3 s, once
_BLOCKS_AT_ONCE = {"gptq": 32}  # whose loop over the inputs pays once for all rows of a block


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Quantize one shard.

    Args:
        params: {"index", "parameters": weight map entries with "scheme" and "tensors", "nbytes", "allow_nonfinite",
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
    parameters = [_job(row) for row in params["parameters"]]
    progress = Progress(out, parameters)
    with path.open("w+b", buffering=0) as file:
        file.truncate(params["nbytes"])
        for job in parameters:
            counts[job.entry.name] = _write_parameter(job, params["method"], inputs, file.fileno(), progress)
            system.start_writeback(file.fileno())
        _report(counts, params["allow_nonfinite"], out)
        digest = md5(file.fileno())
    records = [_record(placed, name) for job in parameters for placed in job.tensors]
    entry = shard_entry(name, params["nbytes"], records, digest)
    out.path("records.json").write_bytes(canonical(entry))


@dataclass(frozen=True, slots=True)
class ParameterJob:
    """A parameter of the shard: its weight map entry, and those of its stored tensors that lie in this shard."""

    entry: Entry
    scheme: Scheme
    tensors: Sequence[PlacedTensor]

    @property
    def placed(self) -> Placed:
        return {placed.tensor.role: placed for placed in self.tensors}


def _job(row: Mapping[str, Json]) -> ParameterJob:
    tensors = [placed_from_json(placed) for placed in row["tensors"]]
    return ParameterJob(read_entry(row), parse_scheme(row["scheme"]), tensors)


def _record(placed: PlacedTensor, shard: str) -> TensorRecord:
    tensor = placed.tensor
    return TensorRecord(tensor.name, tensor.shape, tensor.dtype, placed.offset, tensor.nbytes, shard)


def _write_parameter(
    job: ParameterJob, method_params: Mapping[str, Json], inputs: InputFiles, handle: int, progress: Progress
) -> pack.Counts:
    """Write the stored tensors of one parameter."""
    if job.entry.is_stored:
        _write_imported(job, inputs, handle, progress)
        return pack.Counts()
    method = _methods(job, method_params, inputs)
    at_once = pack.block_rows(job.entry.parameter.shape[-1]) * _BLOCKS_AT_ONCE.get(method_params["name"], 1)
    return _write(job, inputs, _writer(job, method, at_once), at_once, handle, progress)


def _methods(job: ParameterJob, chosen: Mapping[str, Json], inputs: InputFiles) -> Methods | None:
    """How this parameter is rounded; None is to nearest. The method's module is loaded by its name."""
    if chosen["name"] not in METHODS or set(job.placed) == {"plain"}:
        return None
    if job.scheme.kind != "group" or job.scheme.zero_point:  # a rule's; methods choose integers around a zero
        return None
    moments, fitted = None, job.scheme.for_width(job.entry.parameter.shape[-1])
    if f"moments/{job.entry.name}" in inputs:
        moments = np.load(one(inputs[f"moments/{job.entry.name}"]).path, mmap_mode="r")
    parts = len(moments) if moments is not None and moments.ndim == 3 else 1  # experts

    @lru_cache(maxsize=1)
    def part(index: int) -> Method:
        moment = None if moments is None else np.array(moments[index] if moments.ndim == 3 else moments)
        return prepare(chosen["name"], fitted, moment, chosen.get("damping", 0.0), _search(chosen["name"], job, fitted))

    return lambda row: part(row * parts // job.entry.parameter.shape[0])


def _search(method: str, job: ParameterJob, scheme: Scheme) -> Search | None:
    """mse's search as machine code, where compiling it pays; what it finds is what numpy finds."""
    if method not in _SEARCHING or prod(job.entry.parameter.shape) < _COMPILED_FROM_WEIGHTS:
        return None
    search: Search | None = import_module(_SEARCH).compiled_search(
        scheme.group_size, scheme.max_int, STEPS, scheme.dtype
    )
    return search


def _blocks(job: ParameterJob, inputs: InputFiles, at_once: int) -> Iterator[tuple[int, str, np.ndarray]]:
    """A parameter's rows, in order: (first row, dtype, block), block (R, width) as ``pack.RAW`` holds it.

    A block is valid until the next one is asked for.
    """
    width, row = prod(job.entry.parameter.shape[1:]), 0
    for source in job.entry.sources:
        file = inputs[source.tensor]
        assert isinstance(file, File)
        if job.entry.op == "transpose":
            yield from _columns(job, source, file, at_once)
            return
        with _opened(file) as handle:
            for block in _rows(handle, file.offset, source, width, at_once):
                yield row, source.dtype, block
                row += block.shape[0]


def _rows(handle: int, offset: int, source: Slice, width: int, rows: int) -> Iterator[np.ndarray]:
    start, stop = source.start, source.stop
    raw = pack.RAW[source.dtype]
    buffer = np.empty((min(rows, stop - start), width), raw)
    for first in range(start, stop, rows):
        block = buffer[: min(rows, stop - first)]
        _read(handle, block, offset + first * width * raw.itemsize, source.tensor)
        yield block


def _columns(job: ParameterJob, source: Slice, file: File, rows: int) -> Iterator[tuple[int, str, np.ndarray]]:
    """The source is stored (input, output): its columns are the rows of the parameter."""
    outputs, inputs = job.entry.parameter.shape
    raw = pack.RAW[source.dtype]
    whole = np.memmap(file.path, np.uint8, "r", file.offset, (inputs, outputs * raw.itemsize))
    for start in range(0, outputs, rows):
        stop = min(outputs, start + rows)
        columns = np.ascontiguousarray(whole[:, start * raw.itemsize : stop * raw.itemsize]).view(raw)
        yield start, source.dtype, np.ascontiguousarray(columns.T)


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

    def __init__(self, out: Out, jobs: Sequence[ParameterJob]) -> None:
        self.out, self.done, self.reported = out, 0, 0
        self.total = sum(
            (source.stop - source.start) * prod(source.shape[1:]) * pack.RAW[source.dtype].itemsize
            for job in jobs
            for source in job.entry.sources
        )

    def add(self, nbytes: int, label: str) -> None:
        self.done += nbytes
        if self.done - self.reported >= _PROGRESS_BYTES or self.done >= self.total:
            self.out.progress(self.done, self.total, "B", label)
            self.reported = self.done


def _writer(job: ParameterJob, method: Methods | None, at_once: int) -> PlainWriter | PackedWriter:
    """``at_once``: rows of a block, at most."""
    shape = job.entry.parameter.shape
    rows, width = shape[0], prod(shape[1:])
    if "plain" in job.placed:
        return PlainWriter(job.placed["plain"], min(rows, at_once), width)
    transposed = is_transposed(replace(job.entry.parameter, shape=(rows, width)), job.scheme)
    return PackedWriter(job.placed, min(rows, at_once), width, job.scheme, transposed, method)


def _write(
    job: ParameterJob, inputs: InputFiles, writer: PlainWriter | PackedWriter, at_once: int, handle: int,
    progress: Progress,
) -> pack.Counts:  # fmt: skip
    counts, scaled = pack.Counts(), scaling.read(job.entry.name, job.entry.parameter.shape[0], inputs)

    def blocks() -> Iterator[tuple[int, str, np.ndarray, int]]:
        for row, dtype, block in _blocks(job, inputs, at_once):
            yield row, *((dtype, block) if scaled is None else _scaled(scaled, row, dtype, block)), block.nbytes

    if isinstance(writer, PackedWriter) and writer.one_scale:
        for _, dtype, block, _ in blocks():
            writer.measure(dtype, block)
    for row, dtype, block, nbytes in blocks():
        counts.add(writer.write(handle, row, dtype, block))
        progress.add(nbytes, job.entry.name)
    return counts


def _scaled(scaled: scaling.Scaling, row: int, dtype: str, block: np.ndarray) -> tuple[str, np.ndarray]:
    """A block as float32, scaled, with its dtype."""
    weights = np.empty(block.shape, np.float32)
    pack.widen_exactly(block, dtype, weights)
    scaled.apply(weights, row)
    return "F32", weights.view(pack.RAW["F32"])


def _write_imported(job: ParameterJob, inputs: InputFiles, handle: int, progress: Progress) -> None:
    """Write a parameter that the checkpoint holds quantized, as it is."""
    placed = job.placed

    def write_rows(role: str, row: int, rows: np.ndarray) -> None:
        if role in placed:
            offset = placed[role].offset + row * rows.shape[1] * rows.itemsize
            store(handle, np.ascontiguousarray(rows), offset)

    def done(weights: int, dtype: str) -> None:
        progress.add(weights * pack.RAW[dtype].itemsize, job.entry.name)

    imported.write(job.entry, job.scheme, inputs, write_rows, done)


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
        out.warn(
            f"too large for their dtype, and saturated: {count_of(sum(saturated.values()), 'scale')}, most in {worst}"
        )
        out.fact("scales_saturated", sum(saturated.values()))


def _describe_counts(bad: Mapping[str, pack.Counts]) -> str:
    shown = []
    for name, counts in list(bad.items())[:5]:
        kinds = [(counts.nonfinite, "NaN or infinite"), (counts.overflowed, "too large for the dtype of the scheme")]
        shown.append(
            f"{name}: " + ", ".join(f"{count_of(number, 'weight')} {kind}" for number, kind in kinds if number)
        )
    return "; ".join(shown) + (f"; and {count_of(len(bad) - 5, 'more parameter')}" if len(bad) > 5 else "")
