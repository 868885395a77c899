"""Every lie that a safetensors header can tell is a UserError that says what was found."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.core.errors import UserError
from llm_build.formats.safetensors import read_header
from tests.weights.weights_line import source_tensors, write_tensors

GOOD: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]},
}


def write(path: Path, header: Any, data: bytes = b"\0" * 20, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def changed(tensor: str, **fields: Any) -> dict[str, Any]:
    return {**GOOD, tensor: {**GOOD[tensor], **fields}}


def test_a_good_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x", GOOD)
    start = 8 + len(json.dumps(GOOD))
    first, second = read_header(path, "x")
    assert (first.name, first.dtype, first.shape, first.offset, first.nbytes) == ("a", "F16", (2, 3), start, 12)
    assert (second.name, second.offset, second.nbytes) == ("b", start + 12, 8)


def test_it_reads_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    arrays = {
        "one": np.arange(6, dtype=np.float16).reshape(2, 3),
        "two": np.array(4, np.float32),
        "none": np.zeros((0, 4), np.float32),
    }
    numpy_format.save_file(arrays, tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    for tensor in read_header(tmp_path / "x", "x"):
        assert data[tensor.offset : tensor.offset + tensor.nbytes] == arrays[tensor.name].tobytes()
        assert tensor.shape == arrays[tensor.name].shape


def test_the_safetensors_package_reads_what_it_writes(tmp_path: Path) -> None:
    numpy_format = pytest.importorskip("safetensors.numpy")
    tensors = source_tensors()
    write_tensors(tmp_path / "x", tensors)
    found = numpy_format.load_file(tmp_path / "x")
    assert sorted(found) == sorted(tensors)
    assert all(np.array_equal(found[name], array) for name, (_, array) in tensors.items())


LIES: list[tuple[str, Any, str]] = [
    ("not JSON", b"{nonsense", "header is not JSON"),
    ("not UTF-8", b'{"\xff": 1}', "header is not JSON"),
    ("deep", b"[" * 200_000, "header is not JSON"),
    ("a list", b"[]", "header is a JSON list"),
    ("twice", b'{"a": {"dtype": "U8"}, "a": {"dtype": "U8"}}', "'a' twice"),
    ("metadata", {**GOOD, "__metadata__": {"x": 1}}, "__metadata__"),
    ("entry", {**GOOD, "b": [1]}, "entry of 'b'"),
    ("field missing", {**GOOD, "b": {"dtype": "F32", "shape": [2]}}, "entry of 'b'"),
    ("field extra", changed("b", strides=[1]), "entry of 'b'"),
    ("dtype", changed("b", dtype="F24"), "dtype 'F24'"),
    ("dtype type", changed("b", dtype=["F32"]), "dtype ['F32']"),
    ("shape negative", changed("b", shape=[-2]), "shape [-2]"),
    ("shape float", changed("b", shape=[2.0]), "shape [2.0]"),
    ("shape bool", changed("b", shape=[True, 2]), "shape [True, 2]"),
    ("shape larger than span", changed("b", shape=[3]), "span 8 bytes; F32 [3] takes 12"),
    ("huge shape", changed("b", shape=[2**62, 4]), "span 8 bytes"),
    ("dtype wider than span", changed("a", dtype="F32"), "span 12 bytes; F32 [2, 3] takes 24"),
    ("offsets backwards", changed("b", data_offsets=[20, 12]), "data_offsets [20, 12]"),
    ("offsets negative", changed("a", data_offsets=[-4, 8]), "data_offsets [-4, 8]"),
    ("offsets three", changed("b", data_offsets=[12, 16, 20]), "data_offsets [12, 16, 20]"),
    ("overlap", changed("b", data_offsets=[8, 16]), "'b' overlaps 'a'"),
    ("same bytes", {**GOOD, "c": GOOD["b"]}, "overlaps"),
    ("hole", changed("b", data_offsets=[13, 21]), "'b' leaves a hole after 'a'"),
    ("hole first", changed("a", data_offsets=[4, 16]), "leaves a hole after the header"),
    ("past the end", {**GOOD, "c": {"dtype": "U8", "shape": [9], "data_offsets": [20, 29]}}, "truncated"),
]


@pytest.mark.parametrize(("header", "found"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_lies(tmp_path: Path, header: Any, found: str) -> None:
    with pytest.raises(UserError) as error:
        read_header(write(tmp_path / "x", header), "model.safetensors")
    assert error.value.message.startswith("model.safetensors: ")
    assert found in error.value.message


def test_bytes_after_the_last_tensor(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="3 bytes after the last tensor"):
        read_header(write(tmp_path / "x", GOOD, b"\0" * 23), "x")


@pytest.mark.parametrize("length", [2**63, 100_000_001])
def test_a_header_length_without_sense(tmp_path: Path, length: int) -> None:
    with pytest.raises(UserError, match="header length is"):
        read_header(write(tmp_path / "x", GOOD, length=length), "x")


def test_every_truncation(tmp_path: Path) -> None:
    whole = write(tmp_path / "x", GOOD).read_bytes()
    for size in range(len(whole)):
        (tmp_path / "y").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"truncated|header is not JSON"):
            read_header(tmp_path / "y", "y")


def test_every_flipped_bit_of_the_header_is_found_or_shows(tmp_path: Path) -> None:
    """A flip either raises or changes a name, a dtype of one width or an equal-sized shape; convert refuses those."""
    write_tensors(tmp_path / "x", dict(list(source_tensors().items())[:4]))
    whole = bytearray((tmp_path / "x").read_bytes())
    names = {(t.name, t.dtype, t.shape, t.offset) for t in read_header(tmp_path / "x", "x")}
    length = 8 + int.from_bytes(whole[:8], "little")
    for bit in random.Random(1).sample(range(8 * length), 1500):
        whole[bit // 8] ^= 1 << bit % 8
        (tmp_path / "y").write_bytes(whole)
        whole[bit // 8] ^= 1 << bit % 8
        try:
            found = {(t.name, t.dtype, t.shape, t.offset) for t in read_header(tmp_path / "y", "y")}
        except UserError:
            continue
        padding = chr(whole[bit // 8]) == " "
        assert found != names or padding


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_header(tmp_path / "none", "none")
