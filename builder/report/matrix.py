"""The cells of a sweep as a matrix: models by quants by targets, and whatever else is swept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from llm_build.core.status import DONE, LiveStatus
from llm_build.core.units import count_of, format_bytes
from llm_build.report.text import format_rate

_STYLES = {  # of every status, in the order that they are counted in
    "running": "cyan", "failed": "bold red", "skipped": "yellow", "ran": "green", "fresh": "green", "stale": "yellow",
    "waiting": "dim", "unsupported": "magenta", "excluded": "dim",
}  # fmt: skip
_ENGLISH = {"ran": "built"}  # steps run, cells are built
_ANSI = {"cyan": "36", "green": "32", "yellow": "33", "magenta": "35", "dim": "2", "bold": "1", "bold red": "1;31"}
_COLUMN_AXIS = "target"


class Cell(NamedTuple):
    """``at``: its value on each axis; ``note``: the step that runs or failed, or how many steps there are to run.
    ``kl`` (nats per token), ``top1`` (a share): against the original; ``original``: its perplexity; ``bits``: stored,
    per weight."""

    name: str
    at: tuple[str, ...]
    status: LiveStatus | Literal["excluded", ""]  # those two of a place where no cell is
    note: str = ""
    nbytes: int = 0
    perplexity: float | None = None
    original: float | None = None
    tokens_per_s: float | None = None
    kl: float | None = None
    top1: float | None = None
    bits: float | None = None


class Matrix(NamedTuple):
    """``excluded``: how many combinations were left out by a rule; without one, what is no cell is blank."""

    axes: tuple[str, ...]
    cells: tuple[Cell, ...]
    excluded: int = 0


class StyledText(NamedTuple):
    """Text of one style."""

    text: str
    style: str = ""


Line = list[StyledText]
Form = Callable[["Cell"], list[list[str]]]
_GAP = "  "
_LIVE_COLUMN = 16  # "failed calibrate"


def lines(matrix: Matrix, width: int) -> list[Line]:
    """The matrix with all figures in ``width`` columns, or a list of its cells where that is too narrow."""
    for form in (_one_line, _two_lines, _three_lines):
        made = grid(matrix, form)
        if made and max(len(plain(line)) for line in made) <= width:
            return made
    return listing(matrix.cells)


def lines_live(matrix: Matrix, width: int, height: int) -> list[Line]:
    """The matrix while it changes, in ``width`` columns and ``height`` lines: status and size alone, in columns that do
    not move. Where it does not fit, the cells that run or failed, in half as many lines."""
    made = grid(matrix, _status_and_size, _LIVE_COLUMN)
    if made and max(len(plain(line)) for line in made) <= width and len(made) <= height:
        return made
    return first([cell for cell in matrix.cells if cell.status in ("failed", "running")], height // 2)


def lines_short(matrix: Matrix, height: int) -> list[Line]:
    """In place of a matrix that nobody would scroll through: the cells that are not simply up to date."""
    return first([cell for cell in matrix.cells if cell.status in ("failed", "skipped", "ran", "stale")], height)


def first(cells: Sequence[Cell], room: int) -> list[Line]:
    """A list of cells in ``room`` lines."""
    if len(cells) <= room:
        return listing(cells)
    return [*listing(cells[: room - 1]), [StyledText(f"and {len(cells) - room + 1} more", "dim")]] if room > 0 else []


def counted(matrix: Matrix) -> Line:
    """ "36 cells: 20 built, 3 fresh, ..." """
    counts = Counter({"excluded": matrix.excluded})
    counts.update(cell.status for cell in matrix.cells)
    line = [StyledText(f"{count_of(len(matrix.cells), 'cell')}: ")]
    for status, style in _STYLES.items():
        if counts[status]:
            line += [StyledText(f"{counts[status]} {_ENGLISH.get(status, status)}", style), StyledText(", ")]
    return line[:-1]


def legend(matrix: Matrix) -> list[str]:
    """What the figures are, of those that are shown."""
    notes = []
    if any(cell.kl is not None for cell in matrix.cells):
        notes.append("KL: how far the distribution of the next token is from the original's, in nats; 0: nothing lost")
        notes.append("top-1: tokens of held-out text whose likeliest successor is the original's")
    if any(cell.tokens_per_s is not None for cell in matrix.cells):
        notes.append("tok/s: decoding, as `build bench` measured it on this machine")
    return notes


def plain(line: Line) -> str:
    return "".join(part.text for part in line).rstrip()


def coloured(line: Line) -> str:
    """With the escape sequences of a terminal (ECMA-48, SGR)."""
    return "".join(f"\033[{_ANSI[p.style]}m{p.text}\033[0m" if p.style and p.text else p.text for p in line).rstrip()


# What a cell says: a status with a note, and figures, on one or two lines.


def word(cell: Cell) -> str:
    if cell.status == "running":
        return f"▸ {cell.note}"
    return f"{_ENGLISH.get(cell.status, cell.status)} {cell.note}".rstrip()


class _Figures(NamedTuple):
    """Of a cell that is up to date, in words; "" where not known."""

    nbytes: str = ""
    bits: str = ""
    kl: str = ""
    top1: str = ""
    speed: str = ""


def _figures(cell: Cell) -> _Figures:
    if cell.status not in DONE:
        return _Figures()
    return _Figures(
        format_bytes(cell.nbytes) if cell.nbytes else "",
        f"{cell.bits:.2f} bits" if cell.bits is not None else "",
        f"KL {format_kl(cell.kl)}" if cell.kl is not None else "",
        f"top-1 {cell.top1:.1%}" if cell.top1 is not None else "",
        f"{format_rate(cell.tokens_per_s)} tok/s" if cell.tokens_per_s is not None else "",
    )


def format_kl(kl: float) -> str:
    return f"{kl:.5f}"


def _one_line(cell: Cell) -> list[list[str]]:
    return [[word(cell), *_figures(cell)]]


def _two_lines(cell: Cell) -> list[list[str]]:
    figures = _figures(cell)
    return [[word(cell), figures.nbytes, figures.bits], [figures.kl, figures.top1, figures.speed]]


def _three_lines(cell: Cell) -> list[list[str]]:
    figures = _figures(cell)
    return [[word(cell), figures.nbytes], [figures.bits, figures.speed], [figures.kl, figures.top1]]


def _status_and_size(cell: Cell) -> list[list[str]]:
    """What it says is at most _LIVE_COLUMN wide: "verify.dequantized" is "verify"."""
    text = word(cell._replace(note=cell.note.partition(".")[0]))
    text = text if len(text) <= _LIVE_COLUMN else text[: _LIVE_COLUMN - 1] + "…"
    return [[text, _figures(cell).nbytes]]


class Column(NamedTuple):
    """``spans``: for each line of a cell the widths of its parts; a cell of one part only may run over them."""

    title: str
    spans: tuple[tuple[int, ...], ...]
    width: int


def _column_of(title: str, cells: Sequence[Cell], form: Form, least: int = 0) -> Column:
    made = [form(cell) for cell in cells]
    spans = tuple(
        tuple(max((len(line[i]) for line in lines if any(line[1:])), default=0) for i in range(len(lines[0])))
        for lines in zip(*made, strict=True)
    )
    width = max(len(_align(line, span)) for parts in made for line, span in zip(parts, spans, strict=True))
    return Column(title, spans, max(width, len(title), least))


def _align(parts: Sequence[str], spans: Sequence[int]) -> str:
    """The first part to the left, the others to the right of their columns."""
    if not any(parts[1:]):
        return parts[0]
    first, *rest = (
        part.rjust(span) if i else part.ljust(span) for i, (part, span) in enumerate(zip(parts, spans, strict=True))
    )
    return " ".join([first, *(part for part in rest if part)]).rstrip()


# Forms of the whole.


def grid(matrix: Matrix, form: Form, least: int = 0) -> list[Line]:
    """A table for each value of the first of three axes or more; [] where cells share a place. ``least``: the width of
    a column, at least."""
    at = {cell.at: cell for cell in matrix.cells}
    if len(at) < len(matrix.cells) or not matrix.axes:
        return []
    across, down = _directions(matrix)
    names = list(dict.fromkeys(split(cell.at, across)[1] for cell in matrix.cells)) if across is not None else [""]
    rows = list(dict.fromkeys(split(cell.at, across)[0] for cell in matrix.cells))
    empty = Cell("", (), "excluded" if matrix.excluded else "")
    table = {split(cell.at, across): cell for cell in matrix.cells}
    columns = [
        _column_of(label_of(matrix.axes[across], name) if across is not None else "",
                   [table.get((row, name), empty) for row in rows], form, least)
        for name in names
    ]  # fmt: skip
    grouped = len(down) > 1
    labels = {row: [label_of(axis, value) for axis, value in zip(down, row, strict=True)] for row in rows}
    titles = [labels[row][0] for row in rows] if grouped else [" × ".join(down)]
    stub = 2 + max(map(len, [*titles, *(" ".join(labels[row][grouped:]) for row in rows)]))
    made: list[Line] = []
    for title in dict.fromkeys(titles):
        if made:
            made.append([])
        if across is not None or grouped:
            made.append(_heading(title, stub, columns, "bold" if grouped else "dim"))
        for row in rows:
            if not grouped or labels[row][0] == title:
                cells = [table.get((row, name), empty) for name in names]
                made += _row_of(" ".join(labels[row][grouped:]), stub, cells, columns, form)
    return made


def label_of(axis: str, value: str) -> str:
    """A value as it is read alone: that of a choice is a name, that of a key says which (max_batch_size=2)."""
    return f"{axis.rpartition('.')[2]}={value}" if "." in axis else value


def _directions(matrix: Matrix) -> tuple[int | None, list[str]]:
    """The axis that runs across, none where there is one only, and the names of those that run down."""
    if len(matrix.axes) == 1:
        return None, list(matrix.axes)
    across = matrix.axes.index(_COLUMN_AXIS) if _COLUMN_AXIS in matrix.axes else len(matrix.axes) - 1
    return across, [name for i, name in enumerate(matrix.axes) if i != across]


def split(at: tuple[str, ...], across: int | None) -> tuple[tuple[str, ...], str]:
    """The row and the column of a place."""
    if across is None:
        return at, ""
    return at[:across] + at[across + 1 :], at[across]


def _heading(title: str, stub: int, columns: Sequence[Column], style: str) -> Line:
    line = [StyledText(title.ljust(stub), style)]
    for column in columns:
        line.append(StyledText(column.title.ljust(column.width) + _GAP, "bold"))
    return line


def _row_of(name: str, stub: int, cells: Sequence[Cell], columns: Sequence[Column], form: Form) -> list[Line]:
    made: list[Line] = []
    for i in range(len(columns[0].spans)):
        line = [StyledText(("" if i else name).ljust(stub))]
        for cell, column in zip(cells, columns, strict=True):
            parts = form(cell)[i]
            text, styled = _align(parts, column.spans[i]).ljust(column.width), 0 if i else len(parts[0])
            line += [StyledText(text[:styled], _STYLES.get(cell.status, "")), StyledText(text[styled:] + _GAP)]
        made.append(line)
    return [line for i, line in enumerate(made) if not i or plain(line)]


def listing(cells: Sequence[Cell]) -> list[Line]:
    """A line for each cell, under its name."""
    stub = max((len(cell.name) for cell in cells), default=0) + 2
    if not cells:
        return []
    column = _column_of("", cells, _one_line)
    return [line for cell in cells for line in _row_of(cell.name, stub, [cell], [column], _one_line)]
