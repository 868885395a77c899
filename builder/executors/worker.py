"""A worker process: runs one step after another, and dies with the coordinator.

Started by local.py with its pipes as stdin and stdout. While a step runs, file descriptors 1 and 2 are its log."""

from __future__ import annotations

import importlib
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from llm_build.core import system
from llm_build.core.disk import FULL, explain_os_error
from llm_build.core.errors import BuildError, StepError, UserError
from llm_build.core.filestore import FileStore
from llm_build.core.task import StepResult, StepTask, TaskDone, TaskReport
from llm_build.executors.messages import Frames, report_to_json, send, task_from_json
from llm_build.executors.output import StoreOut

_TAIL_LINES = 15
_TAIL_BYTES = 4000


def main(store_root: str, coordinator: int) -> None:
    """Serve jobs until stdin closes. ``coordinator`` is the process id to die with."""
    system.die_with_parent()
    if os.getppid() != coordinator:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # an end like any other signal's, not an exception inside the step
    commands, reports = os.dup(0), os.dup(1)
    _point([0, 1], os.devnull)
    tasks: queue.SimpleQueue[StepTask] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(commands, tasks), daemon=True).start()
    guard = threading.Lock()

    def report(message: TaskReport) -> None:
        with guard:
            send(reports, report_to_json(message))

    store = FileStore(Path(store_root))
    while True:
        task = tasks.get()
        _point([1, 2], str(task.scratch / "log"))
        done = _run(task, store, report)
        sys.stdout.flush()
        sys.stderr.flush()
        system.flush_c_output()
        _point([1, 2], os.devnull)
        report(done)


def _listen(commands: int, tasks: queue.SimpleQueue[StepTask]) -> None:
    frames = Frames()
    while data := os.read(commands, 1 << 16):
        for message in frames.feed(data):
            tasks.put(task_from_json(message))
    os.killpg(0, signal.SIGKILL)  # the coordinator is gone: this process and whatever compilers it started


def _point(handles: list[int], path: str) -> None:
    target = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    for handle in handles:
        os.dup2(target, handle)
    os.close(target)


def _run(task: StepTask, store: FileStore, report: Callable[[TaskReport], None]) -> TaskDone:
    started, clock = time.time(), time.monotonic()
    system.reset_peak()
    out = StoreOut(task, store, report)
    try:
        module, _, function = task.function.partition(":")
        getattr(importlib.import_module(module), function)(task.params, task.inputs, out)
        outputs = out.finish()
    except BaseException as error:
        return TaskDone(task.id, None, _explain(error, task, store.root))
    seconds = time.monotonic() - clock
    return TaskDone(task.id, StepResult(outputs, out.facts, tuple(out.warnings), started, seconds, system.peak_bytes()))


def _explain(error: BaseException, task: StepTask, root: Path) -> BuildError:
    if isinstance(error, UserError):
        return UserError(error.message, error.hint)
    if isinstance(error, OSError) and error.errno in FULL:
        return explain_os_error(error, "could not write", root)
    if isinstance(error, BuildError):
        return StepError(error.message + log_tail(task.scratch), error.hint)
    if isinstance(error, MemoryError):
        return StepError("out of memory", "build fewer steps at a time (-j 1)")
    sys.stdout.flush()
    traceback.print_exception(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
    sys.stderr.flush()
    return StepError(f"{type(error).__name__}: {error}{log_tail(task.scratch)}")


def log_tail(scratch: Path) -> str:
    """The last lines of a step's log, indented, on lines of their own; empty when it said nothing."""
    try:
        with open(scratch / "log", "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _TAIL_BYTES))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return "".join(f"\n    {line}" for line in lines[-_TAIL_LINES:])
