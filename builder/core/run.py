"""The coordinator: one loop that decides what is stale, hands ready steps to an executor and records what they made."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from llm_build.core.admission import Ledger, clamp, memory_warning
from llm_build.core.critical_path import critical_path_seconds
from llm_build.core.errors import BuildError, Interrupted, StepError, worst_code
from llm_build.core.events import Expanded, Finished, Listener, Progress, Started, Waiting, Warned
from llm_build.core.examine import PlanState, StepStatus, examine_step, paused_garbage_collection
from llm_build.core.fingerprint import FileSources, Sources
from llm_build.core.plan import Goal, Plan
from llm_build.core.record import LastResult, Record
from llm_build.core.status import DONE, Status, status_of_all
from llm_build.core.step import Resources, Step
from llm_build.core.store import Lock, RemoteLookup, Store, nbytes_of
from llm_build.core.task import Executor, StepResult, StepTask, TaskDone, TaskProgress, TaskReport, TaskWarned

_WAIT_S = 0.2  # how long Ctrl-C may go unseen
_LOCK_POLL_S = 0.05
_VERBS: Mapping[Status, str] = {"failed": "failed", "skipped": "was skipped"}


class Outcome(NamedTuple):
    """How a run ended. ``plan`` is the plan with its templates expanded; ``steps`` in the order they finished."""

    plan: Plan
    steps: Mapping[str, Finished]
    records: Mapping[str, Record]

    @property
    def failed(self) -> bool:
        return any(done.status not in DONE for done in self.steps.values())

    @property
    def exit_code(self) -> int:
        """0, or that of the worst error: 2 when the user can mend all of it, 1 when a step failed."""
        return worst_code(done.error.exit_code for done in self.steps.values() if done.error) or int(self.failed)

    def finished(self, goal: str) -> list[Finished]:
        """The goal's steps in display order."""
        return [self.steps[id_] for each in self.plan.goals if each.name == goal for id_ in each.steps]

    def goal(self, name: str) -> Status:
        """Fresh, ran or failed."""
        return status_of_all(done.status for done in self.finished(name))


def run(
    plan: Plan,
    store: Store,
    executor: Executor,
    listener: Listener,
    keep_going: bool = False,
    sources: Sources | None = None,
) -> Outcome:
    """Bring every step of the plan up to date.

    Failed steps are in the outcome, not raised (a watched file that is gone, a store that cannot be written, fail the
    steps that need them). Raises Interrupted after Ctrl-C; finished results are kept."""
    build = _Build(PlanState(plan, store, sources or FileSources(store)), executor, listener, keep_going)
    try:
        with _interrupts() as interrupted:
            build.loop(interrupted)
    finally:
        build.close()
    return Outcome(build.state.expanded_plan(), build.done, build.state.records)


class _Running(NamedTuple):
    step: Step
    verdict: StepStatus
    lock: Lock
    task: StepTask


class _Build:
    def __init__(self, state: PlanState, executor: Executor, listener: Listener, keep_going: bool) -> None:
        self.state = state
        self.store = state.store
        self.executor = executor
        self.listener = listener
        self.keep_going = keep_going
        self.done: dict[str, Finished] = {}
        self.ready: list[str] = state.ready_steps()  # all inputs known, not looked at yet
        self.requested: dict[str, list[str]] = {}  # key -> steps whose result is looked for elsewhere
        self.stale: dict[str, StepStatus] = {}  # to be run, not started yet
        self.running: dict[str, _Running] = {}
        self.waiting: set[str] = set()  # stale steps that another build has locked
        self.seconds_behind: dict[str, float] | None = None
        self.bytes_read: dict[str, int] = {}
        self.halted = False  # a step failed and keep_going is off: start nothing more

    @cached_property
    def ledger(self) -> Ledger:
        """Not before a step is to run: an executor may have to reach a cluster for it."""
        return Ledger(self.executor.capacity)

    @cached_property
    def largest(self) -> Resources:
        return self.executor.largest

    def loop(self, interrupted: list[int]) -> None:
        while True:
            with paused_garbage_collection():
                self.examine_ready()
            if not self.halted:
                self.start_ready()
            if not self.running and (self.halted or not self.waiting) and not self.ready and not self.requested:
                break
            timeout = _LOCK_POLL_S if self.waiting or self.requested else _WAIT_S
            if self.running:
                self.handle(self.executor.wait(timeout))
            elif self.waiting and not self.ready and not self.requested:
                time.sleep(_LOCK_POLL_S)
            self.poll_store(0.0 if self.running or self.ready else timeout)
            if interrupted:
                self.interrupt()
        for id_ in [id_ for id_ in self.state.steps if id_ not in self.done and id_ not in self.state.items]:
            self.finish(id_, "skipped", "not started: another step failed")

    # Deciding

    def examine_ready(self) -> None:
        """Examine every step whose inputs are known."""
        for id_ in self.ready:  # grows while it is walked
            step = self.state.steps[id_]
            if id_ in self.done:
                continue
            if step.expand:
                self.ready += self.expand(step)
                continue
            try:
                verdict = examine_step(self.state, step, repair=True)
            except BuildError as error:
                self.fail(id_, "", error)
                continue
            if verdict.record:
                self.ready += self.record_success(id_, "fresh", verdict.reason, verdict.record)
            elif verdict.key in self.requested or (not self.halted and self.store.request_remote(verdict.key)):
                self.requested.setdefault(verdict.key, []).append(id_)
            else:
                self.stale[id_] = verdict
        self.ready.clear()

    def poll_store(self, wait_s: float) -> None:
        """Lookups in a shared store that are over, and what else it reports."""
        for event in self.store.poll_events(wait_s if self.requested else 0.0):
            if isinstance(event, RemoteLookup):
                self.ready += self.requested.pop(event.key, ())
            else:
                self.listener(event)

    def expand(self, template: Step) -> list[str]:
        ready = self.state.expand(template.id)
        items = tuple(id_ for _, id_ in self.state.items[template.id])
        self.listener(Expanded(template.id, items, tuple(self.state.steps[id_].name for id_ in items)))
        for id_ in items:
            for failed in sorted(self.state.missing[id_] & self.done.keys()):
                self.skip_readers(failed)
        return ready

    def seconds_to_end(self, id_: str) -> float:
        if self.seconds_behind is None:
            self.seconds_behind = critical_path_seconds(self.state.plan, self.state.last_result_of)
        return self.seconds_behind.get(id_.partition("[")[0] if id_ not in self.seconds_behind else id_, 0.0)

    def input_bytes(self, id_: str) -> int:
        """Bytes that a step reads: of equal steps the largest starts first, or it ends alone."""
        if id_ not in self.bytes_read:
            self.bytes_read[id_] = self.state.input_bytes(self.state.steps[id_])
        return self.bytes_read[id_]

    # Starting

    def start_ready(self) -> None:
        """Start what fits: the longest way to the end first, then the largest."""
        for id_ in sorted(self.stale, key=lambda id_: (self.seconds_to_end(id_), self.input_bytes(id_)), reverse=True):
            step = self.state.steps[id_]
            resources = clamp(step.resources, self.largest)
            if not self.ledger.fits(resources):
                continue
            try:
                self.start(step, replace(step, resources=resources))
            except BuildError as error:
                self.waiting.discard(id_)
                verdict = self.stale.pop(id_, None)
                self.fail(id_, verdict.reason if verdict else "", error)
            if self.halted:
                break

    def start(self, step: Step, sized: Step) -> None:
        verdict = self.stale[step.id]
        if any(each.verdict.key == verdict.key for each in self.running.values()):
            return  # the same work under another name: its result will do for both
        self.store.start()
        lock = self.store.lock(verdict.key)
        if lock is None:
            if step.id not in self.waiting:
                self.waiting.add(step.id)
                self.listener(Waiting(step.id, step.name, self.store.lock_holder(verdict.key)))
            return
        waited = step.id in self.waiting
        self.waiting.discard(step.id)
        record = self.store.load(verdict.key, repair=True).record  # another build may have finished it meanwhile
        if record:
            lock.release()
            del self.stale[step.id]
            self.ready += self.record_success(
                step.id, "fresh", "built by another build" if waited else "just built", record
            )
            return
        try:
            task = self.task_of(sized)
        except BaseException:
            lock.release()
            raise
        del self.stale[step.id]
        self.running[step.id] = _Running(step, verdict, lock, task)
        self.ledger.take(task.resources)
        self.listener(Started(step.id, step.name, verdict.reason, verdict.key))
        if warning := memory_warning(step.resources, self.largest):
            self.listener(Warned(step.id, step.name, warning))
        self.executor.submit(task)

    def task_of(self, step: Step) -> StepTask:
        inputs = self.state.files(step)
        return StepTask(
            step.id, step.name, step.function, step.params, inputs, step.context, step.resources, self.store.scratch(),
            step.loads,
        )  # fmt: skip

    # Hearing back

    def handle(self, reports: list[TaskReport]) -> None:
        for report in reports:
            name = self.state.steps[report.id].name
            if isinstance(report, TaskProgress):
                self.listener(Progress(report.id, name, report.done, report.total, report.unit, report.label))
            elif isinstance(report, TaskWarned):
                self.listener(Warned(report.id, name, report.message))
            else:
                self.handle_done(report)

    def handle_done(self, report: TaskDone) -> None:
        running = self.running[report.id]
        self.ledger.give(running.task.resources)
        if report.error is None and not self.halted and not self.state.unblocks(report.id):
            self.start_ready()  # a worker is free: writing down what it made, with its syncs, need not hold it up
        del self.running[report.id]
        verdict = running.verdict
        try:
            if report.error:
                raise report.error
            assert report.result is not None
            self.check_sources_unchanged(running.step)
            record = self.record(running, report.result)
            self.store.commit(record)
            self.state.save_code_digests(running.step)
        except BuildError as error:
            self.fail(report.id, verdict.reason, error)
        else:
            self.ready += self.record_success(report.id, "ran", verdict.reason, record)
        finally:
            self.store.keep_log(running.task.scratch, verdict.key)
            self.store.discard(running.task.scratch)
            running.lock.release()

    def record(self, running: _Running, result: StepResult) -> Record:
        identity = self.state.identities[running.step.id]
        return Record(
            key=identity.key,
            parts=identity.parts,
            outputs=dict(sorted(result.outputs.items())),
            groups=identity.groups,
            facts=result.facts,
            warnings=result.warnings,
            started=result.started,
            seconds=result.seconds,
            nbytes=nbytes_of(result.outputs),
            peak_memory_bytes=result.peak_memory_bytes,
        )

    def check_sources_unchanged(self, step: Step) -> None:
        """A result made from a file that changed meanwhile must not be kept."""
        for name, path, before in self.state.watched(step):
            try:
                status = os.stat(path)
                now = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            except OSError:
                now = []
            if now != before:
                raise StepError(
                    f"{name} changed while {step.name} was reading it ({path})",
                    "run the same command again when nothing writes to it any more",
                )

    # Ending

    def record_success(self, id_: str, status: Status, reason: str, record: Record) -> list[str]:
        """A step has its result: note it, and return the steps that were waiting for it alone."""
        for message in record.warnings if status == "fresh" else ():
            self.listener(Warned(id_, self.state.steps[id_].name, message))
        self.finish(id_, status, reason, record=record)
        return self.state.finish(id_, record)

    def finish(
        self, id_: str, status: Status, reason: str, record: Record | None = None, error: BuildError | None = None
    ) -> None:
        step = self.state.steps[id_]
        key = self.state.identities[id_].key if id_ in self.state.identities else ""
        done = Finished(
            id_, step.name, status, reason, key=key, error=error, validation=step.validation, role=step.role
        )
        if record:
            done = done._replace(seconds=record.seconds, nbytes=record.nbytes, facts=record.facts)
        self.done[id_] = done
        self.listener(done)

    def fail(self, id_: str, reason: str, error: BuildError) -> None:
        self.finish(id_, "failed", reason, error=error)
        self.halted = self.halted or not self.keep_going
        self.skip_readers(id_)

    def skip_readers(self, id_: str) -> None:
        """Skip everything that needs ``id_``, directly or not."""
        failed = [id_]
        for producer in failed:  # grows while it is walked
            name, status = self.state.steps[producer].name, self.done[producer].status
            for reader in self.state.readers.get(producer, ()):
                if reader not in self.done:
                    self.finish(reader, "skipped", f"needs {name}, which {_VERBS[status]}")
                    failed.append(reader)

    def interrupt(self) -> None:
        self.handle(self.executor.wait(0))
        self.executor.stop()
        for running in self.running.values():
            self.store.discard(running.task.scratch)
            running.lock.release()
        self.running.clear()
        ran = sum(done.status == "ran" for done in self.done.values())
        raise Interrupted(f"interrupted; {ran} finished steps are kept", "run the same command again to go on")

    def close(self) -> None:
        """Remember what each goal's steps are now, so that the next reason compares with it."""
        if self.running:
            self.executor.stop()
        for running in self.running.values():
            running.lock.release()
        for goal in self.state.plan.goals:
            self.save_last_results(goal)
        self.state.sources.save()
        self.store.stop()

    def save_last_results(self, goal: Goal) -> None:
        now = time.time()
        ids = [id_ for id_ in self.state.ids_of(goal) if id_ in self.state.records]
        records = {self.state.steps[id_].name: self.state.records[id_] for id_ in ids}
        results = {name: LastResult(record.key, now, record.seconds) for name, record in records.items()}
        whole = len(ids) == len(self.state.ids_of(goal)) and not goal.partial
        self.store.save_last_results(goal.name, results, whole)


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that holds the signal once Ctrl-C was pressed; the second one is Python's own KeyboardInterrupt again."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: whoever owns it decides
        yield seen
        return
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
