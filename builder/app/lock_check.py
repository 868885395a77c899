"""--locked: a build does what its lock says, or says what moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from builder.app.lock_state import State, known_modules, state_of
from builder.app.request import Job
from builder.cli.arguments import Arguments
from builder.config.choices import Composed
from builder.core.errors import StepError, UserError
from builder.core.examine import examine
from builder.core.plan import Goal, Plan
from builder.planner.resolve import name_of
from builder.provenance.diff.locks import Moved, line, moved
from builder.provenance.lock_file import Lock, destination, place, read

SHOWN = 20  # differences that an error tells


@dataclass(frozen=True, slots=True)
class Held:
    """The lock that a build is held to."""

    path: Path
    lock: Lock
    command: str  # that writes it anew

    def moved(self, job: Job) -> list[Moved]:
        """What differs from the lock, as far as it is known. Cells that this machine cannot build are left out."""
        return differences(self.lock, state_of(job), job)

    def check(self, job: Job) -> None:
        """Raises UserError, with what moved, before anything is built."""
        if found := self.moved(job):
            raise UserError(
                f"{self.path} does not match what would be built; moved:{listed(found)}",
                f"bring back what moved, or accept it: {self.command}   (and read the diff)",
            )

    def check_read(self, arguments: Arguments, job: Job) -> None:
        """As check, with the checkpoints that are on this disk read first."""
        read_checkpoints(arguments, job)
        self.check(job)

    def check_built(self, job: Job) -> None:
        """Raises StepError when what was built is not what the lock has."""
        if found := self.moved(job):
            raise StepError(
                f"what was built is not what {self.path} has, and was left in the store; differing:{listed(found)}",
                f"if that is wanted: {self.command}",
            )


def differences(lock: Lock, state: State, job: Job) -> list[Moved]:
    cells = {name: cell for name, cell in lock.cells.items() if name not in job.refused}
    tools = {name: version for name, version in lock.tools.items() if not job.refused or name in state.lock.tools}
    comparable = replace(lock, cells=cells, tools=tools)
    return moved(comparable, state.lock, lambda code: state.modules.get(code) or known_modules(job.store, code))


def listed(found: list[Moved]) -> str:
    more = f"\n    and {len(found) - SHOWN} more: build lock --check --json" if len(found) > SHOWN else ""
    return "".join(f"\n    {line(each)}" for each in found[:SHOWN]) + more


def held_to(arguments: Arguments, name: str) -> Held:
    """The lock of a command line. Raises UserError when there is none."""
    given = arguments.options.file
    path = place(arguments.overrides, name, given)
    words = [*arguments.overrides, *(["-m"] if arguments.options.multirun else [])]
    command = " ".join(["build lock", *words, *([f"--file={given}"] if given else [])])
    if path is None:
        raise UserError(f"there is no lock: no file {destination(arguments.overrides, [name], given)}", command)
    return Held(path, read(path), command)


def hold(arguments: Arguments, job: Job) -> Held:
    """The lock that the job is held to. Raises UserError when there is none, or something moved that is known now."""
    held = held_to(arguments, job.names[0])
    held.check(job)
    return held


def read_checkpoints(arguments: Arguments, job: Job) -> None:
    """Runs the steps that read a checkpoint that is on this disk and was not read yet, so that its digest is known."""
    first = {id_: step for id_, step in job.plan.steps.items() if step.watch and "to_download" not in step.params}
    stale = {id_ for id_, verdict in examine(Plan(first, ()), job.store).items() if verdict.status != "hit"}
    if not stale:
        return
    from builder.cli.build import events_to, listener
    from builder.core.run import run
    from builder.executors import local

    goals = [Goal(goal.name, tuple(id_ for id_ in goal.steps if id_ in stale), partial=True) for goal in job.plan.goals]
    plan = Plan({id_: first[id_] for id_ in stale}, tuple(goal for goal in goals if goal.steps))
    options = arguments.options
    with (
        listener(events_to(arguments), options.quiet) as listen,
        local.LocalExecutor(job.store, local.capacity(options.jobs)) as pool,
    ):
        run(plan, job.store, pool, listen)


def at_locked_revision(arguments: Arguments, jobs: Sequence[Composed]) -> list[Composed]:
    """The jobs with hf:// sources at the revision that the lock has: "main" is elsewhere by now."""
    lock = held_to(arguments, name_of(jobs[0])).lock
    return [at_revision(job, lock) for job in jobs]


def at_revision(job: Composed, lock: Lock) -> Composed:
    model, cell = job.values.get("model"), lock.cells.get(name_of(job))
    if cell is None or not isinstance(model, dict) or model.get("source") != cell.checkpoint.get("asked", ""):
        return job
    return replace(job, values={**job.values, "model": {**model, "source": cell.checkpoint["source"]}})
