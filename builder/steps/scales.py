"""scales: what quant.method=awq multiplies columns and rows with, for every fold of the model (see quant/methods/awq).

One fold after the other, and of its matrices one block of rows (an expert), with its moments, at a time. A norm's
weight is rounded to its dtype once it is divided; s is then what it was really divided by, so the fold loses nothing.
What is not packed in groups counts for nothing in the search, and is scaled all the same if it reads the fold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from llm_build.architectures.folds import Fold
from llm_build.architectures.weights import Entry, read_map
from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.quant import pack, storage
from llm_build.quant.layout import Scheme, is_quantized, parse_scheme
from llm_build.quant.methods import awq
from llm_build.steps.ports import group, one

Entries = Mapping[str, Entry]


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write columns/<parameter>, float32 (blocks, in), and rows/<parameter>, float32 (2, out), as .npy.

    Args:
        params: "scheme".
        inputs: "weight_map", "tensors" {"tensor/<name>"}, "moments" {"moments/<parameter>"} of calibrate.
        out: facts "folds" and "scaled", those whose scales are not all 1.
    """
    weight_map = read_map(json.loads(one(inputs["weight_map"]).path.read_text()))
    entries = {entry.name: entry for entry in weight_map.entries}
    search = Search(entries, parse_scheme(params["scheme"]), group(inputs["tensors"]), group(inputs["moments"]))
    scaled = 0
    for index, fold in enumerate(weight_map.folds):
        scales_BC = search.of(fold)
        scaled += bool((scales_BC != 1).any())
        write(fold, entries, scales_BC, out)
        out.progress(index + 1, len(weight_map.folds), "folds", fold.readers[-1])
    out.fact("folds", len(weight_map.folds))
    out.fact("scaled", scaled)


class Search:
    """Finds the scales of folds. C channels: the rows of the writers that a block has to divide."""

    def __init__(
        self, entries: Entries, quantization: Scheme, tensors: Mapping[str, File], moments: Mapping[str, File]
    ) -> None:
        self.entries, self.scheme, self.tensors, self.moments = entries, quantization, tensors, moments

    def of(self, fold: Fold) -> np.ndarray:
        """float32 (blocks, C)."""
        readers = [name for name in fold.readers if self._packed(name)]
        channel_I = channels(fold, self.entries[fold.readers[0]].parameter.shape[1])
        count = int(channel_I.max()) + 1
        found_BC = np.ones((fold.blocks, count), np.float32)
        for block in range(fold.blocks) if readers else ():
            squares_I = sum(self._moment(name, part).diagonal() for name, part in self._places(fold, readers, block))
            squares_C = np.bincount(channel_I, squares_I) / np.bincount(channel_I)
            tried = [self._storable(fold, scales_C) for scales_C in awq.candidates(squares_C)]
            parts = (self._part(name, part) for name, part in self._places(fold, readers, block))
            found_BC[block] = tried[int(awq.errors(parts, [scales_C[channel_I] for scales_C in tried]).argmin())]
        return found_BC

    def _packed(self, name: str) -> bool:
        entry = self.entries[name]
        scheme = self.scheme.for_parameter(name)
        return scheme.kind == "group" and not scheme.zero_point and is_quantized(entry.parameter, self.scheme)

    def _places(self, fold: Fold, readers: list[str], block: int) -> Iterator[tuple[str, int]]:
        """(reader, part) of a block; a matrix has as many parts as it has moments."""
        for name in readers:
            each = max(1, len(self._all_moments(name)) // fold.blocks)
            yield from ((name, part) for part in range(block * each, (block + 1) * each))

    def _all_moments(self, name: str) -> np.ndarray:
        """(parts, I, I), not read yet."""
        moments: np.ndarray = np.load(self.moments[f"moments/{name}"].path, mmap_mode="r")
        return moments if moments.ndim == 3 else moments[None]

    def _moment(self, name: str, part: int) -> np.ndarray:
        moment: np.ndarray = self._all_moments(name)[part]
        return moment

    def _part(self, name: str, part: int) -> awq.Part:
        entry = self.entries[name]
        each = entry.parameter.shape[0] // len(self._all_moments(name))
        stride = -(-each // awq.ROWS)
        weights_RI = _rows(entry, self.tensors, part * each, (part + 1) * each, stride)
        fitted = self.scheme.for_parameter(name).for_width(entry.parameter.shape[1])
        return awq.Part(weights_RI, np.array(self._moment(name, part)), fitted, each / len(weights_RI))

    def _storable(self, fold: Fold, scales_C: np.ndarray) -> np.ndarray:
        """A norm's scales as its dtype lets it be divided; others stay. Where its weight is 0, so is the channel."""
        entry = self.entries[fold.writers[0]]
        if len(entry.parameter.shape) > 1:
            return scales_C
        offset = np.float32(fold.offset)
        norm_C = _rows(entry, self.tensors, 0, entry.parameter.shape[0], 1)[:, 0]
        divided_C = (norm_C + offset) / scales_C - offset
        held_C = storage.widen(storage.narrow(divided_C, self.scheme.dtype), self.scheme.dtype) + offset
        usable_C = (held_C != 0) & np.isfinite(held_C) & (norm_C + offset != 0)
        found_C: np.ndarray = (norm_C + offset) / np.where(usable_C, held_C, np.float32(1))
        return np.where(usable_C, found_C, np.float32(1)).astype(np.float32)


def channels(fold: Fold, inputs: int) -> np.ndarray:
    """For each input of the readers the channel that makes it, counted from the writers' ``start``."""
    numbers_I = np.arange(inputs)
    channel_I: np.ndarray = numbers_I // (fold.repeats * fold.width) * fold.width + numbers_I % fold.width
    return channel_I


def write(fold: Fold, entries: Entries, scales_BC: np.ndarray, out: Out) -> None:
    for name in fold.readers:
        channel_I = channels(fold, entries[name].parameter.shape[1])
        _save(out, f"columns/{name}", scales_BC[:, channel_I])
    for name in fold.writers:
        outputs, offset = entries[name].parameter.shape[0], np.float32(fold.offset)
        rows_2O = np.stack([np.ones(outputs, np.float32), np.zeros(outputs, np.float32)])
        for block, scales_C in enumerate(scales_BC):
            start = block * (outputs // len(scales_BC)) + fold.start
            rows_2O[0, start : start + len(scales_C)] = 1 / scales_C
            rows_2O[1, start : start + len(scales_C)] = offset / scales_C - offset
        _save(out, f"rows/{name}", rows_2O)


def _save(out: Out, name: str, array: np.ndarray) -> None:
    with out.path(name).open("wb") as file:  # np.save would add .npy to a path
        np.save(file, array)


def _rows(entry: Entry, tensors: Mapping[str, File], start: int, stop: int, stride: int) -> np.ndarray:
    """Rows start, start + stride, ... of a parameter, float32 (R, width), as the weight map says."""
    numbers, width, row, parts = np.arange(start, stop, stride), prod(entry.parameter.shape[1:]), 0, []
    for source in entry.sources:
        file, raw = tensors[f"tensor/{source.tensor}"], pack.RAW[source.dtype]
        shape = (source.shape[0], prod(source.shape[1:]))
        matrix = np.memmap(file.path, np.uint8, "r", file.offset, (shape[0], shape[1] * raw.itemsize)).view(raw)
        if entry.op == "transpose":
            values = matrix[:, numbers].T
        else:
            first, last = (source.start, source.stop)
            here = numbers[(numbers >= row) & (numbers < row + last - first)]
            values, row = matrix[here - row + first], row + last - first
        if values.size:
            block = np.empty(values.shape, np.float32)
            pack.widen_exactly(np.ascontiguousarray(values), source.dtype, block)
            parts.append(block)
    joined: np.ndarray = np.concatenate(parts)
    assert joined.shape == (len(numbers), width), (entry.name, joined.shape)
    return joined
