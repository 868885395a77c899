"""Writing one shard file: parameters as blocks of rows, each where it belongs."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np

from llm_build.quant import asymmetric, pack, storage
from llm_build.quant.layout import Scheme
from llm_build.quant.methods import Method
from llm_build.quant.placement import PlacedTensor
from llm_build.quant.storage import NUMPY_DTYPE

Methods: TypeAlias = Callable[[int], Method]  # of a row, with which the rows of its block go
Placed: TypeAlias = Mapping[str, PlacedTensor]  # by role

_HASH_BYTES = 1 << 20


class PlainWriter:
    """Writes an unquantized parameter, cast to its dtype."""

    def __init__(self, placed: PlacedTensor, rows: int, width: int) -> None:
        self.offset, self.dtype = placed.offset, placed.tensor.dtype
        self.out = np.empty((rows, width), NUMPY_DTYPE[self.dtype])

    def write(self, handle: int, row: int, dtype: str, block: np.ndarray) -> pack.Counts:
        out = self.out[: block.shape[0]]
        counts = pack.cast(block, dtype, out, self.dtype)
        store(handle, out, self.offset + row * out.shape[1] * out.itemsize)
        return counts


class PackedWriter:
    """Writes the words, scales and zero points of a parameter, or those of them that this shard holds."""

    def __init__(
        self, placed: Placed, rows: int, width: int, quantization: Scheme, transposed: bool, method: Methods | None
    ) -> None:
        self.placed, self.scheme, self.width, self.transposed = placed, quantization, width, transposed
        self.rows, self.method = rows, method
        fitted = quantization.for_width(width)
        groups = -(-width // fitted.group_size)
        self.words = np.empty((self.rows, groups * fitted.words_per_group), NUMPY_DTYPE[quantization.storage_dtype])
        self.scales = np.empty((self.rows, groups), NUMPY_DTYPE[quantization.scale_dtype])
        self.zeros = np.empty((self.rows, quantization.zero_words(groups)), NUMPY_DTYPE[quantization.storage_dtype])
        self.packers: dict[str, pack.Packer] = {}
        self.one_scale = (
            quantization.scale_per == "tensor"
        )  # of the whole tensor: all blocks are measured before one is written
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
        if self.one_scale:
            scale = self.largest / np.float32(self.scheme.max_magnitude)
            packer.tensor_scale, _ = storage.scales(scale, self.scheme.scale_dtype)
        words, scales = self.words[: block.shape[0]], self.scales[: block.shape[0]]
        zeros = self.zeros[: block.shape[0]]
        if isinstance(packer, asymmetric.Packer):
            counts = packer.pack(block, words, scales, zeros)
        else:
            counts = packer.pack(block, words, scales) if "weight" in self.placed else packer.scales(block, scales)
        for role, array in (("weight", words), ("scale", scales), ("zero", zeros)):
            if role in self.placed:
                self._store(handle, role, array, row)
        return counts

    def _store(self, handle: int, role: str, array: np.ndarray, row: int) -> None:
        placed = self.placed[role]
        if self.transposed:
            _store_columns(handle, array, placed, row)
        elif role == "scale" and self.one_scale:
            store(handle, array[:1], placed.offset)
        else:
            store(handle, array, placed.offset + row * array.shape[1] * array.itemsize)


def store(handle: int, array: np.ndarray, offset: int) -> None:
    view = array.view(np.uint8).reshape(-1).data
    while view:
        count = os.pwrite(handle, view, offset)
        view, offset = view[count:], offset + count


def _store_columns(handle: int, array: np.ndarray, placed: PlacedTensor, column: int) -> None:
    """Rows of ``array`` become columns of the tensor, through a mapping of the file: they are a few bytes each."""
    with mmap.mmap(handle, 0) as mapped:
        whole = np.frombuffer(mapped, array.dtype, placed.tensor.nbytes // array.itemsize, placed.offset)
        whole.reshape(placed.tensor.shape)[:, column : column + array.shape[0]] = array.T
        del whole  # the mapping cannot be closed while it is looked at


def md5(handle: int) -> str:
    """The tensor cache asks for md5; it is no protection and is not used as one."""
    hasher, buffer, offset = hashlib.md5(usedforsecurity=False), memoryview(bytearray(_HASH_BYTES)), 0
    while count := os.preadv(handle, [buffer], offset):
        hasher.update(buffer[:count])
        offset += count
    return hasher.hexdigest()
