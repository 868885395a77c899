"""The live view on a terminal. Of a plain build a row for every step, waiting ones too, the parts of a fan-out added up
in one; of a sweep the matrix of its cells, and a row for each step that runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live as Screen
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from llm_build.core.events import Event, Expanded, Finished, Planned, Progress, Started, Waiting, Warned
from llm_build.core.plan import Plan, producers_of
from llm_build.core.status import DONE
from llm_build.core.units import count_of, format_bytes
from llm_build.report.lines import amount
from llm_build.report.matrix import Line, Matrix, StyledText, counted, lines_live
from llm_build.report.run_state import RunState
from llm_build.report.text import TransferRates, format_clock, format_seconds, template_name

_REFRESH_PER_S, _MANY = 8, 100  # a quarter as often for a sweep of so many cells
_NARROW = 100  # columns of a terminal; below, bars are short
_NEXT = 3  # steps that are named as next
_MARKS = {"ran": ("✓", "green"), "fresh": ("✓", "dim"), "failed": ("✗", "bold red"), "skipped": ("–", "yellow"),
          "waiting": ("·", "dim")}  # fmt: skip


class Live:
    """A listener of the run. ``matrix``: of a sweep.

    The screen is drawn by a thread of rich's: ``lock`` is never held while rich is asked to print."""

    def __init__(self, stream: TextIO, matrix: Matrix | None = None) -> None:
        self.lock = threading.RLock()
        self.console = Console(file=stream, highlight=False)
        self.sweep = matrix is not None
        self.state, self.rates, self.began = RunState(matrix), TransferRates(), time.monotonic()
        self.plan = Plan({}, ())
        rest = Column(no_wrap=True, overflow="ellipsis", ratio=1)
        self.bars = Bars(
            Mark(), TextColumn("{task.description}", markup=False),
            RunningBar(12 if self.console.width < _NARROW else 24),
            TextColumn("{task.fields[note]}", "dim", markup=False, table_column=rest),
            Elapsed(table_column=Column(justify="right", min_width=5)), console=self.console, expand=True,
        )  # fmt: skip
        often = _REFRESH_PER_S / 4 if matrix and len(matrix.cells) > _MANY else _REFRESH_PER_S
        self.screen = Screen(console=self.console, get_renderable=self.draw, refresh_per_second=often, transient=True)
        self.rows: dict[str, TaskID] = {}
        self.parts: dict[str, dict[str, tuple[float, float]]] = {}  # row -> {step id: (done, total)}
        self.active = False  # a build that has nothing to do shows no screen

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
        if self.active and not self.screen.is_started:
            self.screen.start()
        if isinstance(event, Warned) and self.state.is_new(event):
            label = self.state.label(event.id, event.name)
            self.warn(f"{label}: {event.message}" if label else event.message)

    def warn(self, text: str) -> None:
        self.console.print(Text.assemble(("warning: ", "yellow"), text))

    def note(self, event: Event) -> None:
        self.active = self.active or isinstance(event, Started | Progress | Waiting)
        match event:
            case Planned():
                self.plan_rows(event.plan)
            case Started():
                self.start(event)
            case Progress(id=""):
                self.transfer(event)
            case Progress():
                self.move(event)
            case Finished():
                self.finish(event)
            case Waiting():
                note = f"another build (process {event.pid}) is at it"
                self.bars.update(self.row(event.id, event.name), note=note, state="running")
            case Expanded() | Warned():
                pass

    # Rows

    def plan_rows(self, plan: Plan) -> None:
        """A row for every step of a plain build, in the order of the plan."""
        self.plan = plan
        if not self.sweep:
            for id_, step in plan.steps.items():
                self.row(id_, step.name)

    def key(self, id_: str, name: str) -> str:
        return self.state.label(id_, template_name(name))

    def row(self, id_: str, name: str) -> TaskID:
        """The row of a step, made when it is first seen."""
        key = self.key(id_, name)
        if key not in self.rows:
            self.rows[key] = self.bars.add_task(key.ljust(19), total=None, start=False, note="", state="waiting")
            self.parts.setdefault(key, {})
        return self.rows[key]

    def task(self, id_: TaskID) -> Task:
        return self.bars.tasks[self.bars.task_ids.index(id_)]

    def start(self, event: Started) -> None:
        task = self.row(event.id, event.name)
        self.parts[self.key(event.id, event.name)].setdefault(event.id, (0, 0))
        if self.task(task).start_time is None:
            self.bars.start_task(task)
        self.bars.update(task, note=event.reason, state="running")

    def move(self, event: Progress) -> None:
        """How far a step is: bytes or things; of a fan-out the share of its parts."""
        task = self.row(event.id, event.name)
        parts = self.parts[self.key(event.id, event.name)]
        parts[event.id] = (event.done, event.total)
        items = self.state.items.get(event.id.partition("[")[0], {})
        if len(items) < 2:
            self.advance(task, event.done, event.total, amount(event))
            return
        over = sum(state in DONE for state in items.values())
        running = sum(parts[id_][0] / (parts[id_][1] or 1) for id_, state in items.items() if state == "running")
        self.advance(task, over + running, len(items), f"{over} of {count_of(len(items), 'part')}")

    def advance(self, task: TaskID, done: float, total: float, note: str) -> None:
        """A bar never runs backwards, also where more work is found on the way."""
        before = self.task(task).completed if self.task(task).total else 0.0
        share = max(before, min(done / total, 1.0)) if total else before
        self.bars.update(task, completed=share, total=1.0 if total or before else None, note=note)

    def transfer(self, event: Progress) -> None:
        self.rates.note(event.name, event.done)
        task = self.row("", event.name)
        if self.task(task).start_time is None:
            self.bars.start_task(task)
        note, visible = amount(event) + self.rates.rate(event.name), event.done < event.total
        self.bars.update(
            task, completed=event.done, total=event.total or None, note=note, visible=visible, state="running"
        )

    def finish(self, event: Finished) -> None:
        """Of a fan-out, when all its parts are over."""
        key = self.key(event.id, event.name)
        if key not in self.rows or (event.status in DONE and not self.state.is_over(event.id)):
            return
        task = self.rows[key]
        if self.sweep:
            self.bars.remove_task(self.rows.pop(key))
            return
        status = self.state.states.get(event.id.partition("[")[0], event.status)
        note = self.result(event) if status == "ran" else event.reason if status == "skipped" else str(status)
        self.bars.update(task, completed=1.0, total=1.0, note=note, state=status)
        self.bars.stop_task(task)

    def result(self, event: Finished) -> str:
        """What a step made and how long that took; of a fan-out all of it."""
        items = self.state.items.get(event.id.partition("[")[0], {})
        if len(items) < 2:
            return f"{format_seconds(event.seconds)}, {format_bytes(event.nbytes)}"
        nbytes = sum(self.state.sizes.get(id_, 0) for id_ in items)
        return f"{count_of(len(items), 'part')}, {format_bytes(nbytes)}"

    # The screen

    def draw(self) -> Group:
        """As much as the terminal has room for. The matrix goes before bars, so that it does not come and go."""
        with self.lock:
            width, height = self.console.size
            tasks = [task for task in self.bars.tasks if task.visible]
            if not self.sweep:
                self.say_what_is_waited_for()
                rows = self.bars.make_tasks_table(fitting(tasks, height - 2))
                return Group(rows, _rich_text(self.total_of_build()))
            matrix = self.state.now()
            shown = lines_live(matrix, width, height - 3)
            left = max(height - 1 - len(shown) - bool(shown), 1)
            return Group(
                *map(_rich_text, shown), *([Text()] if shown else []), self.bars.make_tasks_table(tasks[:left]),
                _rich_text(self.total(matrix)),
            )  # fmt: skip

    def say_what_is_waited_for(self) -> None:
        for id_, step in self.plan.steps.items():
            if self.state.states.get(id_) == "waiting":
                unfinished = self.unfinished(id_)
                missing = [other.name for each, other in self.plan.steps.items() if each in unfinished]
                note = f"waits for {', '.join(missing)}" if missing else "ready"
                self.bars.update(self.row(id_, step.name), note=note)

    def unfinished(self, id_: str) -> set[str]:
        """The steps that a step reads from and that are not over."""
        return {each for each in producers_of(self.plan.steps[id_]) if not self.state.is_over(each)}

    def total_of_build(self) -> Line:
        """ "3 of 9 steps, 0:07; next: package"."""
        over, steps = self.state.counts()
        line = [StyledText(f"{over} of {count_of(steps, 'step')}, {self.elapsed()}", "bold")]
        waiting = [id_ for id_ in self.plan.steps if self.state.states.get(id_) == "waiting"]
        after = [self.plan.steps[id_].name for id_ in waiting if self.is_next(id_)]
        return [*line, StyledText(f"; next: {', '.join(after[:_NEXT])}", "dim")] if after else line

    def is_next(self, id_: str) -> bool:
        return all(self.state.states.get(each) == "running" for each in self.unfinished(id_))

    def total(self, matrix: Matrix) -> Line:
        done, steps = self.state.counts()
        return [*counted(matrix), StyledText(f"; {done} of {count_of(steps, 'step')}, {self.elapsed()}")]

    def elapsed(self) -> str:
        return format_clock(time.monotonic() - self.began)


def fitting(tasks: Sequence[Task], room: int) -> list[Task]:
    """The rows that a screen has room for: those that are over go first, then those that wait longest."""
    kept = list(tasks)
    for states, last in ((("ran", "fresh"), False), (("waiting",), True)):
        while len(kept) > room and (found := [task for task in kept if task.fields["state"] in states]):
            kept.remove(found[-1 if last else 0])
    return kept[: max(room, 1)]


# Columns: a step that waits has no bar and no time, of one that is over its note tells.


class Mark(ProgressColumn):
    """Whether a step waits, runs, is over or has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.spinner = Spinner("dots", style="cyan")

    def render(self, task: Task) -> Text:
        if task.fields["state"] == "running":
            drawn = self.spinner.render(task.get_time())
            return drawn if isinstance(drawn, Text) else Text("▸")
        return Text(*_MARKS[task.fields["state"]])


class RunningBar(BarColumn):
    def __init__(self, width: int) -> None:
        super().__init__(width, complete_style="cyan", finished_style="cyan", pulse_style="cyan")

    def render(self, task: Task) -> ProgressBar | Text:  # type: ignore[override]
        return super().render(task) if task.fields["state"] == "running" else Text()


class Elapsed(ProgressColumn):
    """How long a step has been running."""

    def render(self, task: Task) -> Text:
        return Text(format_clock(task.elapsed or 0.0) if task.fields["state"] == "running" else "", "cyan")


def _rich_text(line: Line) -> Text:
    text = Text.assemble(*((part.text, part.style) for part in line), no_wrap=True, overflow="ellipsis")
    text.rstrip()
    return text
