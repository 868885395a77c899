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

from builder.core.errors import StepError
from builder.core.filestore import FileStore
from builder.core.job import Job, JobDone, Report
from builder.core.step import Resources
from builder.executors.wire import Frames, job_to_json, report_from_json, send

if TYPE_CHECKING:
    import subprocess

# The worker gets the coordinator's sys.path before it imports anything: a file in the current folder shadows nothing.
BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from builder.executors.worker import main; main(sys.argv[1], int(sys.argv[2]))"
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "TVM_NUM_THREADS", "RAYON_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def capacity(jobs: int = 0) -> Resources:
    """What this machine has: processors this process may use (or ``jobs``), memory within the cgroup, NVIDIA GPUs."""
    processors = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return Resources(jobs or processors, _memory_bytes(), _count("/proc/driver/nvidia/gpus"))


def _memory_bytes() -> int:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _count(folder: str) -> int:
    try:
        return len(os.listdir(folder))
    except OSError:
        return 0


class _Worker:
    def __init__(self, process: subprocess.Popen[bytes], threads: int) -> None:
        assert process.stdin
        assert process.stdout
        self.process = process
        self.commands = process.stdin.fileno()
        self.reports = process.stdout.fileno()
        self.threads = threads
        self.job: Job | None = None
        self.warm: set[str] = set()  # functions whose modules it has loaded
        self.frames = Frames()


class LocalExecutor:
    """Use as a context manager: leaving it ends the workers."""

    def __init__(self, store: FileStore, limits: Resources | None = None) -> None:
        self._root = store.root
        self._capacity = limits or capacity()
        self._workers: list[_Worker] = []

    @property
    def capacity(self) -> Resources:
        return self._capacity

    def __enter__(self) -> LocalExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in list(self._workers):
            self._end(worker)

    def submit(self, job: Job) -> None:
        worker = self._pick(job)
        worker.job = job
        worker.warm.add(job.function)
        with suppress(BrokenPipeError):  # it died: its other pipe says so too, and there the failure is reported
            send(worker.commands, job_to_json(job))

    def _pick(self, job: Job) -> _Worker:
        """An idle worker of the right number of threads, best one that has loaded this step's modules; or a new one."""
        idle = [worker for worker in self._workers if worker.job is None]
        fitting = [worker for worker in idle if worker.threads == job.resources.cpu]
        for worker in fitting:
            if job.function in worker.warm:
                return worker
        if fitting and len(self._workers) >= self._capacity.cpu:
            return fitting[0]
        if idle and len(self._workers) >= self._capacity.cpu:
            self._end(idle[0])
        return self._spawn(job)

    def _spawn(self, job: Job) -> _Worker:
        import subprocess

        threads = job.resources.cpu

        command = [sys.executable, "-c", BOOT, str(self._root), str(os.getpid()), *(p or os.getcwd() for p in sys.path)]
        with open(job.scratch / "log", "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(threads),
                start_new_session=True,  # Ctrl-C in the terminal reaches the coordinator alone
                bufsize=0,
            )
        worker = _Worker(process, threads)
        self._workers.append(worker)
        return worker

    def wait(self, timeout_s: float) -> list[Report]:
        import select

        poll = select.poll()
        by_handle = {worker.reports: worker for worker in self._workers}
        for handle in by_handle:
            poll.register(handle, select.POLLIN)
        reports: list[Report] = []
        for handle, _ in poll.poll(timeout_s * 1000):
            reports += self._hear(by_handle[handle])
        return reports

    def _hear(self, worker: _Worker) -> list[Report]:
        data = os.read(worker.reports, 1 << 16)
        if not data:
            return self._bury(worker)
        reports = [report_from_json(message) for message in worker.frames.feed(data)]
        if any(isinstance(report, JobDone) for report in reports):
            worker.job = None
        return reports

    def _bury(self, worker: _Worker) -> list[Report]:
        """A worker died: what it was doing has failed."""
        import subprocess

        with suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)  # its pipe closes a moment before its status is known
        code, job = self._end(worker), worker.job
        if job is None:
            return []
        from builder.executors.worker import log_tail

        error = StepError(f"the process {_said(code)}{log_tail(job.scratch)}", _advice(code))
        return [JobDone(job.id, None, error)]

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
        for worker in [worker for worker in self._workers if worker.job]:
            self._end(worker)


def _environment(threads: int) -> Mapping[str, str]:
    """The coordinator's own, with the threads that the step was given and hashes that do not differ between runs."""
    return {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "PYTHONHASHSEED": "0"}


def _said(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _advice(code: int) -> str:
    if code == -signal.SIGKILL:
        return "most often the system ran out of memory: close other programs, or build with -j 1"
    return ""
