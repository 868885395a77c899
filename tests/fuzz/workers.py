"""Worker processes, forked from one that has imported everything; one that dies or hangs is replaced by another."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.cases import Identity, Place, Verdict, keep, run_case
from tests.fuzz.kinds import Kind
from tests.fuzz.rules import CPU_SECONDS, IDLE_CPU_SECONDS, IDLE_SECONDS, WALL_SECONDS

_MOST_CASES = 150  # of one process


@dataclass
class Worker:
    """``since``: when its case was sent; ``cpu``: seconds of processor time at ``cpu_since``, and when it began."""

    pid: int
    pipe: Connection
    folder: Path
    case: Identity | None = None
    since: float = 0.0
    cpu_since: float = 0.0
    cpu: float = 0.0
    cpu_start: float = 0.0
    cases: int = 0

    def begin(self, case: Identity) -> None:
        self.case, self.cases = case, self.cases + 1
        self.since = self.cpu_since = time.monotonic()
        self.cpu = self.cpu_start = cpu_seconds(self.pid)
        self.pipe.send(case)

    def trouble(self) -> str:
        """Why it is not to be waited for any longer, "" if it is."""
        now = time.monotonic()
        if now - self.since < WALL_SECONDS:
            return ""
        cpu = cpu_seconds(self.pid)
        if cpu - self.cpu_start > 2 * CPU_SECONDS:
            return f"no answer within {cpu - self.cpu_start:.0f} s of processor time"
        if now - self.cpu_since < IDLE_SECONDS:
            return ""
        if cpu - self.cpu < IDLE_CPU_SECONDS:
            return f"no answer within {now - self.since:.0f} s, and it waits"
        self.cpu, self.cpu_since = cpu, now
        return ""


def cpu_seconds(pid: int) -> float:
    """Of a process and of its children, proc(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = [
            child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:
        return 0.0
    return sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK") + sum(cpu_seconds(int(child)) for child in children)


class Pool:
    """``kinds``: by name; ``root``: the folder of the run, with the samples."""

    def __init__(self, kinds: Mapping[str, Kind], root: Path, count: int) -> None:
        self.kinds, self.root, self.started = kinds, root, 0
        (root / "failed").mkdir(parents=True, exist_ok=True)  # before any case looks at what lies beside it
        self.workers = [self._start() for _ in range(count)]

    def _start(self) -> Worker:
        self.started += 1
        folder = self.root / f"worker-{self.started}"
        ours, theirs = connection.Pipe()
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            ours.close()
            _serve(theirs, self.kinds, folder, self.root)
        theirs.close()
        return Worker(pid, ours, folder)

    def run(self, cases: Iterator[Identity]) -> Iterator[tuple[Identity, Verdict]]:
        """A verdict of each case, in the order in which they end."""
        idle = list(self.workers)
        while True:
            while idle and (case := next(cases, None)) is not None:
                self._fresh(idle.pop()).begin(case)
            busy = [worker for worker in self.workers if worker.case]
            if not busy:
                return
            ready = connection.wait([worker.pipe for worker in busy], timeout=1.0)
            for worker in busy:
                trouble = "" if worker.pipe in ready else worker.trouble()
                if worker.pipe in ready or trouble:
                    case, verdict = self._verdict(worker, trouble)
                    idle = [each for each in self.workers if not each.case]
                    yield case, verdict

    def _fresh(self, worker: Worker) -> Worker:
        """The worker, or another in its place: threads that wait for transfers stay as long as their process."""
        if worker.cases < _MOST_CASES:
            return worker
        worker.pipe.send(None)  # workers that were forked later hold this pipe too: closing it says nothing
        os.waitpid(worker.pid, 0)
        worker.pipe.close()
        at = self.workers.index(worker)
        self.workers[at] = self._start()
        return self.workers[at]

    def _verdict(self, worker: Worker, trouble: str) -> tuple[Identity, Verdict]:
        case, worker.case = worker.case, None
        assert case is not None
        if not trouble:
            try:
                return case, worker.pipe.recv()
            except (EOFError, ConnectionError):
                status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
                breach = f"the process ended with {status}\n{_stack(worker)}"
        else:
            os.kill(worker.pid, signal.SIGUSR1)
            time.sleep(0.5)
            breach = f"{trouble}\n{_stack(worker)}"
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
        wall = time.monotonic() - worker.since
        failed = self.root / "failed" / f"{case.kind}-{case.seed}-{case.number}"
        if (worker.folder / "case").exists():
            (worker.folder / "case").rename(failed)
        self.workers[self.workers.index(worker)] = self._start()
        return case, Verdict(breach, "", 0.0, wall, 0)

    def stop(self) -> None:
        for worker in self.workers:
            worker.pipe.close()
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


def _stack(worker: Worker) -> str:
    """Where it was, as faulthandler wrote it."""
    file = worker.folder / "stack"
    return file.read_text("utf-8", "replace")[-3000:] if file.exists() else ""


def _serve(pipe: Connection, kinds: Mapping[str, Kind], folder: Path, root: Path) -> None:
    """Cases one after the other, until there is None."""
    try:
        folder.mkdir(parents=True)
        stack = (folder / "stack").open("w")
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack, all_threads=True)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        place = Place(folder, root / "samples")
        while True:
            if (case := pipe.recv()) is None:
                os._exit(0)
            verdict = run_case(place, kinds[case.kind], case)
            if verdict.breach:
                keep(place, root / "failed" / f"{case.kind}-{case.seed}-{case.number}", f"{case}\n{verdict.breach}\n")
            pipe.send(verdict)
    except EOFError:
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(3)
