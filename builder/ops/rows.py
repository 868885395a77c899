"""Some of the rows of a tensor. Axes: M rows (tokens), B rows that are taken, H features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te
from tvm.relax.frontend import nn

from llm_build.ops import emit as op


@dataclass(frozen=True, slots=True)
class LastRowLabel(op.Label):
    op: ClassVar[str] = "last_row"

    width: int


@dataclass(frozen=True, slots=True)
class TakeRowsLabel(op.Label):
    op: ClassVar[str] = "take_rows"

    width: int


def _last_row(label: LastRowLabel, x_MH: Any) -> Any:
    last = x_MH.shape[0] - 1
    return te.compute((1, label.width), lambda _, h: x_MH[last, h], "last")


def last_row(x_MH: nn.Tensor, width: int) -> nn.Tensor:
    """(M, H) -> (1, H)."""
    return op.emit(LastRowLabel(width), _last_row, [x_MH], [], (1, width))


def _take_rows(label: TakeRowsLabel, x_MH: Any, rows_B: Any) -> Any:
    return te.compute((rows_B.shape[0], label.width), lambda b, h: x_MH[rows_B[b], h], "taken")


def take_rows(x_MH: nn.Tensor, rows_B: nn.Tensor, width: int) -> nn.Tensor:
    """(M, H), (B,) int32 -> (B, H)."""
    return op.emit(TakeRowsLabel(width), _take_rows, [x_MH, rows_B], [], (rows_B.shape[0], width))
