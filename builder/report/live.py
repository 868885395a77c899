"""The live view on a terminal: a bar for each step that runs, the parts of a fan-out added up in one; in a sweep the
matrix of its cells above them."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column
from rich.text import Text

from llm_build.core.events import Event, Expanded, Finished, Planned, Progress, Started, Waiting, Warned
from llm_build.core.status import DONE
from llm_build.core.units import count_of, format_bytes
from llm_build.report.lines import amount
from llm_build.report.matrix import Line, Matrix, StyledText, counted, lines_live
from llm_build.report.run_state import RunState
from llm_build.report.text import TransferRates, format_clock, format_seconds, template_name

_REFRESH_PER_S, _MANY = 8, 100  # a quarter as often for a sweep of so many cells
_NARROW = 100  # columns of a terminal; below, bars are short


class Live:
    """A listener of the run. ``matrix``: of a sweep.

    The screen is drawn by a thread of rich's: ``lock`` is never held while rich is asked to print."""

    def __init__(self, stream: TextIO, matrix: Matrix | None = None) -> None:
        self.lock = threading.RLock()
        self.console = Console(file=stream, highlight=False)
        self.sweep = matrix is not None
        self.state, self.rates, self.began = RunState(matrix), TransferRates(), time.monotonic()
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self.bars = Bars(
            SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}", markup=False),
            BarColumn(12 if self.console.width < _NARROW else 24),
            TextColumn("{task.fields[note]}", "dim", markup=False, table_column=rest),
            Elapsed(table_column=Column(justify="right", min_width=5)), console=self.console, expand=True,
        )  # fmt: skip
        often = _REFRESH_PER_S / 4 if matrix and len(matrix.cells) > _MANY else _REFRESH_PER_S
        self.screen = Screen(console=self.console, get_renderable=self.draw, refresh_per_second=often, transient=True)
        self.rows: dict[str, TaskID] = {}
        self.parts: dict[str, dict[str, tuple[float, float]]] = {}  # row -> {step id: (done, total)}

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.screen.stop()
        for text in self.state.repeated():
            self.warn(text)

    def __call__(self, event: Event) -> None:
        with self.lock:
            self.state(event)
            self.note(event)
        if self.rows and not self.screen.is_started:
            self.screen.start()  # a build that has nothing to do shows none
        if isinstance(event, Warned) and self.state.is_new(event):
            label = self.state.label(event.id, event.name)
            self.warn(f"{label}: {event.message}" if label else event.message)

    def warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "yellow"), text))

    def note(self, event: Event) -> None:
        match event:
            case Started():
                self.show(self.row(event.id, event.name), event.reason)
                self.parts[self.key(event.id, event.name)].setdefault(event.id, (0, 0))
            case Progress(id=""):
                self.transfer(event)
            case Progress():
                self.move(event)
            case Finished():
                self.finish(event)
            case Waiting():
                self.show(self.row(event.id, event.name), f"another build (process {event.pid}) is at it")
            case Planned() | Expanded() | Warned():
                pass

    # Bars

    def key(self, id_: str, name: str) -> str:
        return self.state.label(id_, template_name(name))

    def row(self, id_: str, name: str) -> TaskID:
        """The bar of a step, made when it is first seen."""
        key = self.key(id_, name)
        if key not in self.rows:
            self.rows[key] = self.bars.add_task(key.ljust(19), total=None, note="")
            self.parts.setdefault(key, {})
        return self.rows[key]

    def show(self, task: TaskID, note: str) -> None:
        self.bars.update(task, note=note)

    def move(self, event: Progress) -> None:
        """How far a step is: bytes or things; of a fan-out the share of its parts."""
        task = self.row(event.id, event.name)
        parts = self.parts[self.key(event.id, event.name)]
        parts[event.id] = (event.done, event.total)
        items = self.state.items.get(event.id.partition("[")[0], {})
        if len(items) < 2:
            self.bars.update(task, completed=event.done, total=event.total or None, note=amount(event))
            return
        over = sum(state in DONE for state in items.values())
        running = sum(parts[id_][0] / (parts[id_][1] or 1) for id_, state in items.items() if state == "running")
        note = f"{over} of {count_of(len(items), 'part')}"
        self.bars.update(task, completed=over + running, total=len(items), note=note)

    def transfer(self, event: Progress) -> None:
        self.rates.note(event.name, event.done)
        task = self.row("", event.name)
        note = amount(event) + self.rates.rate(event.name)
        visible = event.done < event.total
        self.bars.update(task, completed=event.done, total=event.total or None, note=note, visible=visible)

    def finish(self, event: Finished) -> None:
        key = self.key(event.id, event.name)
        if key not in self.rows or (event.status in DONE and not self.state.is_over(event.id)):
            return
        task = self.rows[key]
        if self.sweep:
            self.bars.remove_task(self.rows.pop(key))
            return
        total = self.bars.tasks[self.bars.task_ids.index(task)].total or 1
        note = "failed" if event.status == "failed" else self.result(event)
        self.bars.update(task, completed=total, total=total, note=note)
        self.bars.stop_task(task)

    def result(self, event: Finished) -> str:
        """What a step made and how long that took; of a fan-out all of it."""
        items = self.state.items.get(event.id.partition("[")[0], {})
        if len(items) < 2:
            return f"{format_seconds(event.seconds)}, {format_bytes(event.nbytes)}"
        return f"{count_of(len(items), 'part')}, {format_bytes(sum(self.state.sizes.get(id_, 0) for id_ in items))}"

    # The screen

    def draw(self) -> Group:
        """As much as the terminal has room for. The matrix goes before bars, so that it does not come and go."""
        with self.lock:
            width, height = self.console.size
            tasks = [task for task in self.bars.tasks if task.visible]
            if not self.sweep:
                return Group(self.bars.make_tasks_table(tasks[-(height - 1) :]))
            matrix = self.state.now()
            shown = lines_live(matrix, width, height - 3)
            left = max(height - 1 - len(shown) - bool(shown), 1)
            return Group(
                *map(_rich_text, shown), *([Text()] if shown else []), self.bars.make_tasks_table(tasks[:left]),
                _rich_text(self.total(matrix)),
            )  # fmt: skip

    def total(self, matrix: Matrix) -> Line:
        done, steps = self.state.counts()
        elapsed = format_clock(time.monotonic() - self.began)
        return [*counted(matrix), StyledText(f"; {done} of {count_of(steps, 'step')}, {elapsed}")]


class Elapsed(ProgressColumn):
    """How long a step has been running; of a finished one its note tells."""

    def render(self, task: Task) -> Text:
        return Text("" if task.finished else format_clock(task.elapsed or 0.0), "cyan")


def _rich_text(line: Line) -> Text:
    text = Text.assemble(*((part.text, part.style) for part in line), no_wrap=True, overflow="ellipsis")
    text.rstrip()
    return text
