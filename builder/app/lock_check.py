"""--locked: a build does what its lock says, or says what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llm_build.app.lock_state import LockState, lock_state
from llm_build.app.options import BuildOptions
from llm_build.app.request import BuildRequest
from llm_build.app.session import Session, local_executor
from llm_build.config.choices import Composed
from llm_build.core.errors import StepError, UserError
from llm_build.core.examine import examine, known_modules
from llm_build.core.plan import Goal, Plan
from llm_build.core.run import run
from llm_build.planner.names import name_of
from llm_build.provenance.diff.locks import LockDifference, differences_between, format_lock_difference
from llm_build.provenance.lock_file import Lock, destination, find_lock_file, read

SHOWN = 20  # differences that an error tells


@dataclass(frozen=True, slots=True)
class LockCheck:
    """The lock that a build has to match."""

    path: Path
    lock: Lock
    command: str  # that writes it anew

    def differences(self, request: BuildRequest) -> list[LockDifference]:
        """What differs from the lock, as far as it is known. Cells that this machine cannot build are left out."""
        return lock_differences(self.lock, lock_state(request), request)

    def check(self, request: BuildRequest) -> None:
        """Raises UserError, with what differs, before anything is built."""
        if differences := self.differences(request):
            raise UserError(
                f"{self.path} does not match what would be built; moved:{_listed(differences)}",
                f"bring back what moved, or accept it: {self.command}   (and read the diff)",
            )

    def check_read(self, options: BuildOptions, request: BuildRequest, session: Session) -> None:
        """As check, with the checkpoints that are on this disk read first."""
        read_checkpoints(options, request, session)
        self.check(request)

    def check_built(self, request: BuildRequest) -> None:
        """Raises StepError when what was built is not what the lock has."""
        if differences := self.differences(request):
            raise StepError(
                f"what was built is not what {self.path} has, and was left in the store; differing:"
                f"{_listed(differences)}",
                f"if that is wanted: {self.command}",
            )


def lock_differences(lock: Lock, state: LockState, request: BuildRequest) -> list[LockDifference]:
    cells = {name: cell for name, cell in lock.cells.items() if name not in request.refused}
    tools = {name: version for name, version in lock.tools.items() if not request.refused or name in state.lock.tools}
    comparable = replace(lock, cells=cells, tools=tools)
    return differences_between(
        comparable, state.lock, lambda code: state.modules.get(code) or known_modules(request.store, code)
    )


def _listed(differences: list[LockDifference]) -> str:
    more = f"\n    and {len(differences) - SHOWN} more: build lock --check --json" if len(differences) > SHOWN else ""
    return "".join(f"\n    {format_lock_difference(each)}" for each in differences[:SHOWN]) + more


def lock_check_of(options: BuildOptions, name: str) -> LockCheck:
    """The lock of a command line. Raises UserError when there is none. ``name``: of its first build."""
    path = find_lock_file(options.overrides, name, options.lock_file)
    words = [*options.overrides, *(["-m"] if options.multirun else [])]
    command = " ".join(["build lock", *words, *([f"--file={options.lock_file}"] if options.lock_file else [])])
    if path is None:
        expected = destination(options.overrides, [name], options.lock_file)
        raise UserError(f"there is no lock: no file {expected}", command)
    return LockCheck(path, read(path), command)


def require_match(options: BuildOptions, request: BuildRequest) -> LockCheck:
    """The lock that the request has to match. Raises UserError when there is none, or something differs that is known
    now."""
    lock = lock_check_of(options, request.names[0])
    lock.check(request)
    return lock


def read_checkpoints(options: BuildOptions, request: BuildRequest, session: Session) -> None:
    """Runs the steps that read a checkpoint that is on this disk and was not read yet, so that its digest is known."""
    first = {id_: step for id_, step in request.plan.steps.items() if step.watch and "to_download" not in step.params}
    stale = {id_ for id_, verdict in examine(Plan(first, ()), request.store).items() if verdict.status != "fresh"}
    if not stale:
        return
    goals = [
        Goal(goal.name, tuple(id_ for id_ in goal.steps if id_ in stale), partial=True) for goal in request.plan.goals
    ]
    plan = Plan({id_: first[id_] for id_ in stale}, tuple(goal for goal in goals if goal.steps))
    with session.listen(None) as listen, local_executor(request, options.jobs) as pool:
        run(plan, request.store, pool, listen)


def at_locked_revision(options: BuildOptions, jobs: Sequence[Composed]) -> list[Composed]:
    """The jobs with hf:// sources at the revision that the lock has: "main" is elsewhere by now."""
    lock = lock_check_of(options, name_of(jobs[0])).lock
    return [_at_revision(job, lock) for job in jobs]


def _at_revision(job: Composed, lock: Lock) -> Composed:
    model, cell = job.values.get("model"), lock.cells.get(name_of(job))
    if cell is None or not isinstance(model, dict) or model.get("source") != cell.checkpoint.get("asked", ""):
        return job
    return replace(job, values={**job.values, "model": {**model, "source": cell.checkpoint["source"]}})
