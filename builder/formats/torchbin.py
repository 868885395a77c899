"""torch pickles (pytorch_model.bin): read with weights-only loading, written once as safetensors."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_build.core.errors import UserError
from llm_build.formats import safetensors

DTYPES = {
    "torch.bool": "BOOL",
    "torch.uint8": "U8",
    "torch.int8": "I8",
    "torch.int16": "I16",
    "torch.int32": "I32",
    "torch.int64": "I64",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.float32": "F32",
    "torch.float64": "F64",
}
_WRITE_BYTES = 8 << 20
_MOST_SHARING = 4  # times a file's size that all its tensors may take: tied ones lie in it once
_SLACK_BYTES = 1 << 20
_PICKLE_BYTES = 64 << 20  # of names and shapes: those of the largest models take 1 MB
_BUFFER = b"bytearray"


def to_safetensors(source: Path, name: str, target: Path) -> None:
    """Write the pickle's tensors, sorted by name, to ``target``; ``name`` is what messages call the pickle.

    Raises:
        UserError: it is damaged, holds anything but tensors (never unpickled), or a dtype that safetensors lacks.
    """
    tensors = _load(source, name)
    order = sorted(tensors)
    with target.open("wb") as file:
        safetensors.write_header(file, [(key, DTYPES[str(tensors[key].dtype)], tensors[key].shape) for key in order])
        for key in order:
            _write(file, tensors.pop(key))


def _load(source: Path, name: str) -> dict[str, Any]:
    import torch

    _check_not_compressed(source, name)
    _check_no_buffers(source, name)
    try:
        try:
            state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not a zip archive, so it cannot be mapped
            state = torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # the reader of a damaged pickle stumbles in any way: KeyError, AssertionError, ...
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise UserError(
            f"{name}: cannot be read with weights-only loading: {reason:.300}",
            "the file is damaged or holds code; fetch the safetensors version of this checkpoint",
        ) from error
    if not isinstance(state, dict) or not state:
        raise UserError(f"{name}: holds a {type(state).__name__}; allowed: a dict of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not torch.is_tensor(value):
            raise UserError(f"{name}: entry {key!r} is a {type(value).__name__}; allowed: tensors")
        if str(value.dtype) not in DTYPES:
            raise UserError(f"{name}: tensor {key!r} has dtype {value.dtype}; allowed: {', '.join(DTYPES)}")
    _check_sizes(state, source.stat().st_size, name)
    return dict(state)


def _check_not_compressed(source: Path, name: str) -> None:
    """torch stores its tensors as they are; what unpacks to more than the file holds is no checkpoint."""
    if not zipfile.is_zipfile(source):
        return
    try:
        with zipfile.ZipFile(source) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged list of entries: BadZipFile, NotImplementedError, IndexError, ...
        raise UserError(f"{name}: its list of entries is damaged: {error!s:.300}", "fetch it again") from error
    if unpacked > (size := source.stat().st_size):
        raise UserError(f"{name}: unpacks to {unpacked} bytes; allowed: its own {size}", _NO_CHECKPOINT)


def _check_no_buffers(source: Path, name: str) -> None:
    """Weights-only loading makes a bytearray of any length that a pickle states; tensors need none."""
    for pickled in _pickles(source):
        if _BUFFER in pickled:
            raise UserError(f"{name}: holds a bytearray; allowed: tensors", _NO_CHECKPOINT)


def _pickles(source: Path) -> Iterator[bytes]:
    """The pickle in torch's archive; of a file that is none, its beginning: tensors follow the pickle."""
    if not zipfile.is_zipfile(source):
        with source.open("rb") as file:
            yield file.read(_PICKLE_BYTES)
        return
    with zipfile.ZipFile(source) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".pkl"):
                yield _member(archive, entry)


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(entry) as file:
            return file.read(_PICKLE_BYTES)
    except Exception:  # whatever is damaged, torch says
        return b""


def _check_sizes(tensors: Mapping[str, Any], file_bytes: int, name: str) -> None:
    """A tensor may repeat its bytes (stride 0), and many may lie on the same: written out, that has no end."""
    import torch

    total = 0
    for key, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(f"{name}: tensor {key!r} has no bytes of its own in the file", _NO_CHECKPOINT)
        nbytes = tensor.numel() * tensor.element_size()
        if nbytes > min(tensor.untyped_storage().nbytes(), file_bytes):
            raise UserError(
                f"{name}: tensor {key!r} takes {nbytes} bytes of a file of {file_bytes}: it repeats them",
                _NO_CHECKPOINT,
            )
        total += nbytes
    if total > _MOST_SHARING * file_bytes + _SLACK_BYTES:
        raise UserError(f"{name}: its tensors take {total} bytes of a file of {file_bytes}", _NO_CHECKPOINT)


_NO_CHECKPOINT = "do not build this checkpoint unless you trust where it came from"


def _write(file: Any, tensor: Any) -> None:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    step = max(1, _WRITE_BYTES // flat.element_size())
    for start in range(0, flat.numel(), step):
        file.write(memoryview(flat[start : start + step].view(torch.uint8).numpy()))
