"""The live view on a terminal: a bar for each step that runs, the parts of a fan-out added up in one."""

from __future__ import annotations

from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from builder.core.events import Event, Finished, Grew, Progress, Started, Waiting, Warned
from builder.report.words import base, seconds, size


class Live:
    """A listener of the run."""

    def __init__(self, stream: TextIO) -> None:
        self.console = Console(file=stream, highlight=False)
        self.bars = Bars(
            SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description:<19}"), BarColumn(24),
            TextColumn("{task.fields[note]}"), TimeElapsedColumn(),
            console=self.console, refresh_per_second=8, transient=True,
        )  # fmt: skip
        self.rows: dict[str, TaskID] = {}
        self.parts: dict[str, dict[str, tuple[float, float]]] = {}  # row -> {step id: (done, total)}
        self.left: dict[str, int] = {}

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def row(self, name: str) -> TaskID:
        """The bar of a step, made when it is first seen: a build that has nothing to do shows none."""
        if name not in self.rows:
            if not self.rows:
                self.bars.start()
            self.rows[name] = self.bars.add_task(name, total=None, note="")
        return self.rows[name]

    def __call__(self, event: Event) -> None:
        match event:
            case Grew():
                self.left[base(event.names[0]) if event.names else ""] = len(event.names)
            case Started():
                name = base(event.name)
                self.bars.update(self.row(name), note=event.reason[:60])
                self.parts.setdefault(name, {}).setdefault(event.id, (0, 0))
            case Progress():
                self.move(event)
            case Finished(status="ran" | "failed"):
                self.finish(event)
            case Waiting():
                self.bars.update(self.row(base(event.name)), note=f"another build (process {event.pid}) is at it")
            case Warned():
                self.console.print(
                    f"[yellow]warning:[/] {event.name + ': ' if event.name else ''}{event.message}", markup=True
                )

    def move(self, event: Progress) -> None:
        name = base(event.name)
        parts = self.parts.setdefault(name, {})
        parts[event.id] = (event.done, event.total)
        done, total = (sum(p[i] for p in parts.values()) for i in (0, 1))
        note = (
            f"{size(done)} of {size(total)}" if event.unit == "B" else f"{done:g}/{total:g} {event.unit} {event.label}"
        )
        self.bars.update(self.row(name), completed=done, total=total or None, note=note[:60])

    def finish(self, event: Finished) -> None:
        name = base(event.name)
        self.left[name] = self.left.get(name, 1) - 1
        if self.left[name] > 0 and event.status == "ran":
            return
        task = self.row(name)
        total = self.bars.tasks[self.bars.task_ids.index(task)].total or 1
        note = f"{seconds(event.seconds)}, {size(event.nbytes)}" if event.status == "ran" else "[red]failed"
        self.bars.update(task, completed=total, total=total, note=note)
        self.bars.stop_task(task)
