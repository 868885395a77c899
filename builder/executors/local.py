"""Steps on this machine: worker processes that are started once and reused."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from llm_build.core import disk, system
from llm_build.core.errors import StepError
from llm_build.core.filestore import FileStore
from llm_build.core.step import Loads, Resources
from llm_build.core.task import StepTask, TaskDone, TaskReport, TaskWarned
from llm_build.executors.messages import Frames, report_from_json, send, task_to_json
from llm_build.executors.process_libraries import can_load, has_loaded, with_library

if TYPE_CHECKING:
    import subprocess

# The worker gets the coordinator's sys.path before it imports anything: a file in the current folder shadows nothing.
_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from llm_build.executors.worker import main; main(sys.argv[1], int(sys.argv[2]))"
)
# Signals that come from someone else (a person, the system short of memory, a session that ends). A step's own crash is
# SIGSEGV, SIGABRT, SIGBUS, SIGILL, SIGFPE or an exit: it would crash again.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "TVM_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def capacity(jobs: int = 0) -> Resources:
    """What this machine has: processors this process may use (or ``jobs``), memory within the cgroup, NVIDIA GPUs."""
    return Resources(jobs or system.cores(), system.memory_bytes(), len(_gpus()))


def _gpus() -> list[str]:
    """NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES calls them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        return [str(index) for index in range(len(os.listdir("/proc/driver/nvidia/gpus")))]
    except OSError:
        return []


class _Worker:
    def __init__(self, process: subprocess.Popen[bytes], threads: int, gpus: frozenset[str]) -> None:
        assert process.stdin
        assert process.stdout
        self.process = process
        self.commands = process.stdin.fileno()
        self.reports = process.stdout.fileno()
        self.threads = threads
        self.gpus = gpus  # the ones that it sees; a step that takes none sees all
        self.task: StepTask | None = None
        self.loaded: set[str] = set()  # functions whose modules it has loaded
        self.libraries: frozenset[Loads] = frozenset()  # what its steps loaded beside
        self.frames = Frames()


class LocalExecutor:
    """Use as a context manager: leaving it ends the workers."""

    def __init__(self, store: FileStore, limits: Resources | None = None) -> None:
        self._root = store.root
        self._capacity = limits or capacity()
        self._workers: list[_Worker] = []
        self._gpus = _gpus() or [str(index) for index in range(self._capacity.gpu)]
        self._retried: set[Path] = set()  # scratch folders of the tasks that were started a second time

    @property
    def capacity(self) -> Resources:
        return self._capacity

    @property
    def largest(self) -> Resources:
        return self._capacity

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in list(self._workers):
            self._end(worker)

    def submit(self, task: StepTask) -> None:
        worker = self._pick(task)
        worker.task = task
        worker.loaded.add(task.function)
        worker.libraries = with_library(worker.libraries, task.loads)
        with suppress(BrokenPipeError):  # it died: its other pipe says so too, and there the failure is reported
            send(worker.commands, task_to_json(task))

    def _pick(self, task: StepTask) -> _Worker:
        """An idle worker with this many threads and GPUs whose process can load what the step loads, best one that has
        loaded the step's modules or the library, which takes seconds; or a new one."""
        idle = [worker for worker in self._workers if worker.task is None]
        free = self._free_gpus()
        size = (task.resources.cpu, task.resources.gpu)
        fitting = [
            each
            for each in idle
            if (each.threads, len(each.gpus)) == size and each.gpus <= free and can_load(each.libraries, task.loads)
        ]
        for worker in fitting:
            if task.function in worker.loaded or (task.loads and has_loaded(worker.libraries, task.loads)):
                return worker
        if fitting and len(self._workers) >= self._capacity.cpu:
            return fitting[0]
        if idle and len(self._workers) >= self._capacity.cpu:
            self._end(idle[0])
        return self._spawn(task)

    def _free_gpus(self) -> set[str]:
        return set(self._gpus).difference(*(worker.gpus for worker in self._workers if worker.task))

    def _spawn(self, task: StepTask) -> _Worker:
        import subprocess

        threads = task.resources.cpu
        gpus = frozenset(sorted(self._free_gpus(), key=self._gpus.index)[: task.resources.gpu])
        command = [
            sys.executable,
            "-c",
            _BOOT,
            str(self._root),
            str(os.getpid()),
            *(p or os.getcwd() for p in sys.path),
        ]
        with open(task.scratch / "log", "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(threads, gpus),
                start_new_session=True,  # Ctrl-C in the terminal reaches the coordinator alone
                bufsize=0,
            )
        worker = _Worker(process, threads, gpus)
        self._workers.append(worker)
        return worker

    def wait(self, timeout_s: float) -> list[TaskReport]:
        import select

        poll = select.poll()
        by_handle = {worker.reports: worker for worker in self._workers}
        for handle in by_handle:
            poll.register(handle, select.POLLIN)
        reports: list[TaskReport] = []
        for handle, _ in poll.poll(timeout_s * 1000):
            if by_handle[handle] in self._workers:  # it may have had to make room for a step that begins again
                reports += self._read_reports(by_handle[handle])
        return reports

    def _read_reports(self, worker: _Worker) -> list[TaskReport]:
        data = os.read(worker.reports, 1 << 16)
        if not data:
            return self._handle_death(worker)
        reports = [report_from_json(message) for message in worker.frames.feed(data)]
        if any(isinstance(report, TaskDone) for report in reports):
            worker.task = None
        return reports

    def _handle_death(self, worker: _Worker) -> list[TaskReport]:
        """A worker died. What it was doing has failed, or begins again when it was killed from outside, once."""
        import subprocess

        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)  # its pipe closes a moment before its status is known
        code, task = self._end(worker), worker.task
        if task is None:
            return []
        if -code in _FROM_OUTSIDE and task.scratch not in self._retried and _renew(task.scratch):
            self._retried.add(task.scratch)
            self.submit(task)
            return [TaskWarned(task.id, f"its process {_describe_exit(code)} from outside: started once more")]
        from llm_build.executors.worker import log_tail

        error = StepError(f"the process {_describe_exit(code)}{log_tail(task.scratch)}", _advice(code))
        return [TaskDone(task.id, None, error)]

    def _end(self, worker: _Worker) -> int:
        """Kill a worker with all it started; its exit status."""
        self._workers.remove(worker)
        code = worker.process.poll()
        with suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)
        code = worker.process.wait() if code is None else code
        for pipe in (worker.process.stdin, worker.process.stdout):
            if pipe:
                pipe.close()
        return code

    def stop(self) -> None:
        for worker in [worker for worker in self._workers if worker.task]:
            self._end(worker)


def _renew(scratch: Path) -> bool:
    """Make the folder an empty one; False when that cannot be done."""
    old = scratch.with_name(f"{scratch.name}.dead")
    try:
        scratch.rename(old)  # whatever the dead worker had started may still write for a moment: not here any more
        scratch.mkdir()
    except OSError:
        return False
    disk.remove_tree(old)
    return True


_SETTINGS = {"PYTHONHASHSEED": "0", "RUST_BACKTRACE": "0"}  # a panic of a library is told as an error


def _environment(threads: int, gpus: frozenset[str]) -> Mapping[str, str]:
    """The coordinator's own, with the threads and GPUs that the step was given and hashes that do not differ between
    runs."""
    seen = {"CUDA_VISIBLE_DEVICES": ",".join(sorted(gpus))} if gpus else {}
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), **seen, **_SETTINGS}


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _advice(code: int) -> str:
    if code == -signal.SIGKILL:
        return "most often the system ran out of memory: close other programs, or build with -j 1"
    return ""
