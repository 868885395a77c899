"""Cells of a sweep ranked by what their schemes lose: KL, which tells schemes apart where perplexity over a short text
is noise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from llm_build.report.matrix import Cell, Matrix, format_kl, label_of

_SHOWN = 8  # rows for each model
_MODEL = ("model", "model.source")  # axes whose values are not comparable
_WHERE = "target"  # the axis that changes no weight


def ranked(cells: Iterable[Cell]) -> list[Cell]:
    """Those that were measured, the least KL first."""
    measured = [cell for cell in cells if cell.kl is not None]
    return sorted(measured, key=lambda cell: (cell.kl or 0.0, cell.bits or 0.0))


def ranking_lines(matrix: Matrix) -> list[str]:
    """A row for each combination of everything but targets, below the model that it is of; nothing where less than two
    were measured."""
    models: dict[tuple[str, ...], list[Cell]] = {}
    for cell in ranked(matrix.cells):
        own = models.setdefault(_values(matrix, cell, _MODEL), [])
        if all(_label(matrix, cell) != _label(matrix, other) for other in own):
            own.append(cell)
    lines = []
    for model, cells in models.items():
        if len(cells) > 1:
            of = f" of {' '.join(model)}" if model and len(models) > 1 else ""
            lines += [f"least lost first{of}:", *_rows(matrix, cells)]
    return lines


def _rows(matrix: Matrix, cells: Sequence[Cell]) -> list[str]:
    width = max(len(_label(matrix, cell)) for cell in cells[:_SHOWN])
    rows = []
    for cell in cells[:_SHOWN]:
        top1 = f"  top-1 {cell.top1:6.1%}" if cell.top1 is not None else ""
        bits = f"  {cell.bits:5.2f} bits per weight" if cell.bits is not None else ""
        rows.append(f"  {_label(matrix, cell):<{width}}  KL {format_kl(cell.kl or 0.0)}{top1}{bits}")
    more = len(cells) - _SHOWN
    return [*rows, f"  and {more} more: --json has all"] if more > 0 else rows


def _label(matrix: Matrix, cell: Cell) -> str:
    return " ".join(_values(matrix, cell, [axis for axis in matrix.axes if axis not in (*_MODEL, _WHERE)])) or cell.name


def _values(matrix: Matrix, cell: Cell, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(label_of(axis, value) for axis, value in zip(matrix.axes, cell.at, strict=True) if axis in axes)
