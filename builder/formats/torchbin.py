"""torch pickles (pytorch_model.bin): read with weights-only loading, written once as safetensors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from builder.core.errors import UserError
from builder.formats import safetensors

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

    try:
        try:
            state = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # written before torch 1.6: not a zip archive, so it cannot be mapped
            state = torch.load(source, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise UserError(
            f"{name}: cannot be read with weights-only loading: {reason}",
            "the file is damaged or holds code; fetch the safetensors version of this checkpoint",
        ) from error
    if not isinstance(state, dict) or not state:
        raise UserError(f"{name}: holds a {type(state).__name__}; allowed: a dict of tensors")
    for key, value in state.items():
        if not isinstance(key, str) or not torch.is_tensor(value):
            raise UserError(f"{name}: entry {key!r} is a {type(value).__name__}; allowed: tensors")
        if str(value.dtype) not in DTYPES:
            raise UserError(f"{name}: tensor {key!r} has dtype {value.dtype}; allowed: {', '.join(DTYPES)}")
    return dict(state)


def _write(file: Any, tensor: Any) -> None:
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    step = max(1, _WRITE_BYTES // flat.element_size())
    for start in range(0, flat.numel(), step):
        file.write(memoryview(flat[start : start + step].view(torch.uint8).numpy()))
