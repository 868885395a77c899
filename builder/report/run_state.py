"""Where every step and every cell stands, learned from the events of a run."""

from __future__ import annotations

from typing import NamedTuple

from llm_build.core.events import Event, Expanded, Finished, Planned, Started, Warned
from llm_build.core.plan import goals_of_steps
from llm_build.core.status import LiveStatus
from llm_build.report.matrix import Cell, Matrix, label_of
from llm_build.report.text import template_name

_OVER = ("fresh", "ran", "failed", "skipped")


class CellProgress(NamedTuple):
    """A cell now: its status in a word, the name of the step that runs or failed, how many of its steps are over."""

    status: LiveStatus
    step: str
    done: int
    total: int
    nbytes: int = 0  # of the artifact, once it is made


class RunState:
    """A listener. ``matrix``: of a sweep, before it starts; None for a plain build.

    A template stands for its items: it is over when they all are."""

    def __init__(self, matrix: Matrix | None = None) -> None:
        self.matrix = matrix or Matrix((), ())
        self.at = {cell.name: cell.at for cell in self.matrix.cells}
        self.names: dict[str, str] = {}  # step id -> name
        self.goals: dict[str, tuple[str, ...]] = {}
        self.artifacts: dict[str, str] = {}
        self.partial: dict[str, bool] = {}  # cells of which more steps will follow
        self.goals_of: dict[str, list[str]] = {}  # step id -> cells
        self.states: dict[str, LiveStatus] = {}
        self.items: dict[str, dict[str, LiveStatus]] = {}  # template -> its items
        self.sizes: dict[str, int] = {}
        self.columns: list[int] = []  # how many values the planned cells have on each axis
        self.labels: dict[str, str] = {}
        self.warned: dict[tuple[str, str], set[str]] = {}  # (step, message) -> step ids

    def __call__(self, event: Event) -> None:
        match event:
            case Planned():
                self.plan(event)
            case Expanded():
                self.items[event.template] = dict.fromkeys(event.items, "waiting")
                self.update_template(event.template)
            case Started():
                self.note(event.id, "running")
            case Finished():
                self.note(event.id, event.status)
                self.sizes[event.id] = event.nbytes

    def plan(self, event: Planned) -> None:
        for id_, step in event.plan.steps.items():
            self.names[id_] = step.name
            self.states.setdefault(id_, "waiting")
        for goal in event.plan.goals:
            self.goals[goal.name], self.artifacts[goal.name] = goal.steps, goal.artifact
            self.partial[goal.name] = goal.partial
        self.goals_of |= goals_of_steps(event.plan.goals)
        cells = [self.at[name] for name in self.goals if name in self.at]
        self.columns = [len(set(column)) for column in zip(*cells, strict=True)]
        self.labels.clear()

    def note(self, id_: str, state: LiveStatus) -> None:
        template = id_.partition("[")[0]
        if template != id_ and template in self.items:
            self.items[template][id_] = state
            self.update_template(template)
        else:
            self.states[id_] = state

    def update_template(self, template: str) -> None:
        """The state of a template from those of its items."""
        items = set(self.items[template].values())
        for state in ("failed", "running"):
            if state in items:
                self.states[template] = state
                return
        if "waiting" not in items:
            self.states[template] = next((s for s in ("skipped", "ran") if s in items), "fresh")
        elif items - {"waiting"}:
            self.states[template] = "running"

    def label(self, id_: str, name: str) -> str:
        """The name of a step, in a sweep with what tells it from others: the axis values that all its cells share, and
        not all cells that are built."""
        template = id_.partition("[")[0]
        if template not in self.labels:
            cells = [self.at[goal] for goal in self.goals_of.get(template, ()) if goal in self.at]
            self.labels[template] = " ".join(
                label_of(axis, own[0])
                for axis, own, every in zip(self.matrix.axes, zip(*cells, strict=True), self.columns, strict=False)
                if len(set(own)) == 1 and every > 1
            )
        return f"{name} {self.labels[template]}".rstrip()

    def is_new(self, event: Warned) -> bool:
        """Whether a warning was not printed for a step of this kind before: in a sweep, many have the same one."""
        warning = template_name(event.name), event.message
        is_new = warning not in self.warned
        self.warned.setdefault(warning, set()).add(event.id)
        return is_new

    def repeated(self) -> list[str]:
        """What to add about the warnings that were printed once for many."""
        return [
            f"{name}: the same for {len(ids) - 1} more: {message}"
            for (name, message), ids in self.warned.items()
            if len(ids) > 1
        ]

    def is_over(self, id_: str) -> bool:
        """Whether a step is, and all the items that were made of it."""
        template = id_.partition("[")[0]
        return self.states.get(template if template in self.items else id_) in _OVER

    def now(self) -> Matrix:
        """The matrix with every planned cell as it stands."""
        return self.matrix._replace(cells=tuple(self.cell(cell) for cell in self.matrix.cells))

    def cell(self, cell: Cell) -> Cell:
        if cell.name not in self.goals:
            return cell
        progress = self.progress_of(cell.name)
        note = progress.step
        if progress.status == "waiting":
            note = f"{progress.done}/{progress.total}" if progress.done else ""
        return cell._replace(status=progress.status, note=note, nbytes=progress.nbytes)

    def counts(self) -> tuple[int, int]:
        """Steps that are over, and all of them; a fan-out counts as one, so that the whole does not grow."""
        return sum(state in _OVER for state in self.states.values()), len(self.states)

    def progress_of(self, cell: str) -> CellProgress:
        steps = self.goals.get(cell, ())
        states = [self.states[id_] for id_ in steps]
        done = sum(state in _OVER for state in states)
        size = self.sizes.get(self.artifacts.get(cell, ""), 0)
        for state in ("failed", "running"):
            if state in states:
                return CellProgress(state, self.names[steps[states.index(state)]], done, len(steps), size)
        if "skipped" in states:
            return CellProgress("failed", "", done, len(steps), size)
        if done < len(steps) or self.partial.get(cell, True):
            return CellProgress("waiting", "", done, len(steps), size)
        return CellProgress("ran" if "ran" in states else "fresh", "", done, len(steps), size)
