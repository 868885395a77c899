"""Some of the rows of a tensor. Axes: M rows (tokens), B rows that are taken, H features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te
from tvm.relax.frontend import nn

from builder.ops import emit as op


def _last_row(fields: Mapping[str, Any], x_MH: Any) -> Any:
    last = x_MH.shape[0] - 1
    return te.compute((1, fields["width"]), lambda _, h: x_MH[last, h], "last")


def last_row(x_MH: nn.Tensor, width: int) -> nn.Tensor:
    """(M, H) -> (1, H)."""
    return op.emit("last_row", _last_row, {"width": width}, [x_MH], [], (1, width))


def _take_rows(fields: Mapping[str, Any], x_MH: Any, rows_B: Any) -> Any:
    return te.compute((rows_B.shape[0], fields["width"]), lambda b, h: x_MH[rows_B[b], h], "taken")


def take_rows(x_MH: nn.Tensor, rows_B: nn.Tensor, width: int) -> nn.Tensor:
    """(M, H), (B,) int32 -> (B, H)."""
    return op.emit("take_rows", _take_rows, {"width": width}, [x_MH, rows_B], [], (rows_B.shape[0], width))
