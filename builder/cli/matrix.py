"""The matrix of a sweep and why cells of it cannot be built, as text."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from typing import TextIO

from llm_build.app.build import BuildResult
from llm_build.app.request import BuildRequest
from llm_build.cli.output import relative
from llm_build.config.axes import Axes
from llm_build.core.status import DONE
from llm_build.core.units import count_of
from llm_build.report.matrix import Matrix, coloured, counted, legend, lines, lines_short, plain
from llm_build.report.ranking import ranking_lines
from llm_build.report.text import format_seconds, wrap_text

_PLAIN_WIDTH = 120  # of a matrix in a log
_SCREENS = 3  # of a terminal that a matrix may fill
_NAMED = 3  # cells that are named one by one


def print_sweep(matrix: Matrix, request: BuildRequest, result: BuildResult, stream: TextIO) -> None:
    """The matrix, why cells could not be built, and what it took."""
    print_matrix(matrix, stream)
    for line in ranking_lines(matrix):
        print(line, file=stream)
    print_refused(request, stream)
    steps = result.outcome.steps.values()
    ran, whole = sum(step.status == "ran" for step in steps), count_of(len(steps), "step")
    said = f"built in {format_seconds(result.seconds)} ({ran} of {whole} ran)" if ran else f"all {whole} fresh"
    if any(cell.status in DONE for cell in matrix.cells):
        print(f"{said}; a folder for each cell in {relative(request.dist)}", file=stream)
    skipped = sum(cell.status == "skipped" for cell in matrix.cells)
    if skipped:
        print(
            f"{count_of(skipped, 'cell')} skipped because others failed: -k builds what does not depend on those",
            file=stream,
        )


def print_matrix(matrix: Matrix, stream: TextIO) -> None:
    """In colours on a terminal, once and plain elsewhere."""
    terminal, screen = stream.isatty(), shutil.get_terminal_size((80, 24))
    drawn = lines(matrix, screen.columns if terminal else _PLAIN_WIDTH)
    if terminal and len(drawn) > _SCREENS * screen.lines:
        drawn = lines_short(matrix, screen.lines - 3)
    for line in [*drawn, counted(matrix)]:
        print(coloured(line) if terminal else plain(line), file=stream)
    for text in legend(matrix):
        print(wrap_text(text, stream), file=stream)


def print_refused(request: BuildRequest, stream: TextIO) -> None:
    """Why cells cannot be built, each reason once, with the cells that it concerns."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, error in request.refused.items():
        reasons.setdefault((error.message, error.hint), []).append(name)
    for (message, hint), names in reasons.items():
        print(wrap_text(f"unsupported: {message}", stream), file=stream)
        print(f"  cells: {describe_cells(request.axes, names)}", file=stream)
        if hint:
            print(f"  next: {hint}", file=stream)


def describe_cells(axes: Axes, names: Collection[str]) -> str:
    """Some cells in few words: as overrides where they are all combinations of some values, else by name."""
    if len(names) == len(axes.at):
        return f"all {len(names)}"
    if len(names) <= 1:
        return ", ".join(names)
    columns = list(zip(*(axes.at[name] for name in names), strict=True))
    values = [list(dict.fromkeys(column)) for column in columns]
    everything = [set(column) for column in zip(*axes.at.values(), strict=True)]
    places = {axes.at[name] for name in names}
    if {at for at in axes.at.values() if all(v in own for v, own in zip(at, values, strict=True))} == places:
        own = [
            f"{axis}={','.join(v)}"
            for axis, v, all_ in zip(axes.names, values, everything, strict=True)
            if {*v} != all_
        ]
        return f"{' '.join(own)} ({len(names)} of {len(axes.at)})"
    shown = list(names)[:_NAMED]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")
