"""Steps on a Ray cluster: each is a task of its own, the coordinator alone decides what is stale.

The only file that imports ray, and not before a step is to run. Ray places the tasks and says which of them were lost;
what steps read and make goes through the shared store, not through Ray's. What a running step says goes through an
actor beside the coordinator.
https://docs.ray.io/en/latest/ray-core/scheduling/resources.html, .../fault_tolerance/tasks.html
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llm_build.core.errors import BuildError, StepError, UserError
from llm_build.core.filestore import FileStore
from llm_build.core.step import Resources
from llm_build.core.step_io import Json
from llm_build.core.task import StepTask, TaskDone, TaskReport, TaskWarned
from llm_build.executors.blob_transfer import BlobTransfer, check_shared_store, location_of
from llm_build.executors.log import write_log
from llm_build.executors.messages import report_from_json
from llm_build.executors.node_request import NodeRequest, request_for

if TYPE_CHECKING:
    pass

_LOST = {  # Ray's errors for a task that was killed from outside, in words; any other error is reported as it is
    "NodeDiedError": "died",
    "WorkerCrashedError": "lost the process of this step",
    "OutOfMemoryError": "ran out of memory, and Ray killed the process of this step",
}
_TRIES = 4  # how often a step is started whose node is lost each time
_OBJECT_STORE_BYTES = 80 << 20  # Ray's least is 75 MiB; no result goes through it
_POLL_S = 5.0  # how often a task that has not begun is checked
_PROBE_S = 5.0
_END_S = 3.0  # how long a cancelled task may take to end its step before its process is killed
_INSTALL = "pip install 'llm-build[ray]'"
_NOT_INSTALLED = "every node needs llm-build, in the Python that its Ray runs with: " + _INSTALL


class RayExecutor:
    """Use as a context manager: leaving it ends what still runs, and disconnects.

    ``address``: "local" starts Ray on this machine, "auto" joins the cluster that this machine is a node of, host:port
    or ray://host:port another one. ``node_store`` says, on a node, where its own store is. ``jobs`` limits the
    processors that steps take at one time, 0 is all."""

    def __init__(self, store: FileStore, address: str, node_store: Callable[[], Path], jobs: int = 0) -> None:
        self._store = store
        self._node_store = node_store
        self._address = address
        self._jobs = jobs
        self._cluster: _Cluster | None = None
        self._reports: queue.SimpleQueue[TaskReport] = queue.SimpleQueue()
        self._tasks: dict[str, _TaskThread] = {}

    @property
    def capacity(self) -> Resources:
        nodes = self._connected().nodes()
        cpu = int(sum(node.get("CPU", 0) for node in nodes))
        memory = int(sum(node.get("memory", 0) for node in nodes))
        return Resources(min(self._jobs or cpu, cpu), memory, int(sum(node.get("GPU", 0) for node in nodes)))

    @property
    def largest(self) -> Resources:
        nodes = self._connected().nodes()
        cpu, memory, gpu = (int(max(node.get(name, 0) for node in nodes)) for name in ("CPU", "memory", "GPU"))
        return Resources(min(self._jobs or cpu, cpu), memory, gpu)

    def _connected(self) -> _Cluster:
        if self._cluster is None:
            check_shared_store(self._store, self._address)
            self._cluster = _Cluster(self._address, self._jobs, self._store)
        return self._cluster

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._cluster:
            self._cluster.disconnect()

    def submit(self, task: StepTask) -> None:
        thread = _TaskThread(task, self._store, self._node_store, self._connected(), self._reports.put)
        self._tasks = {id_: each for id_, each in self._tasks.items() if each.is_alive()}
        self._tasks[task.id] = thread
        thread.start()

    def wait(self, timeout_s: float) -> list[TaskReport]:
        reports = []
        with suppress(queue.Empty):
            reports.append(self._reports.get(timeout=timeout_s) if timeout_s else self._reports.get_nowait())
            while True:
                reports.append(self._reports.get_nowait())
        return reports

    def stop(self) -> None:
        running = [task for task in self._tasks.values() if task.is_alive()]
        for task in running:
            task.cancel()
        for task in running:
            task.join(_END_S)
            if task.is_alive():
                task.cancel(force=True)
                task.join(_END_S)
        self.wait(0)
        self._tasks.clear()


class _Cluster:
    """The connection, and the actor that hears what running steps say."""

    def __init__(self, address: str, jobs: int, store: FileStore) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
        try:
            import ray
        except ImportError as error:
            raise UserError("executor=ray needs the package ray, which is not installed", _INSTALL) from error
        self.ray: Any = ray
        self.is_local = address == "local"
        self.blobs = BlobTransfer(store)
        _connect(ray, address, jobs)
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if not self.nodes():
            ray.shutdown()
            raise UserError(
                f"executor.address={address}: no node of this Ray cluster has a processor for steps",
                "ray start --address=... --num-cpus=8 on another machine, or executor.address=local",
            )
        beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.mailbox: Any = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=beside).remote()
        self.run = ray.remote(_run_task)
        try:
            ray.get(self.mailbox.take.remote("", 0, 0, 0.0))
        except ray.exceptions.RayError as error:
            ray.shutdown()
            raise UserError(
                f"executor.address={address}: llm-build does not start there: {_last_line(error)}", _NOT_INSTALLED
            ) from error

    def nodes(self) -> list[Mapping[str, float]]:
        """What each living node has in all, of those that steps may run on."""
        return [
            node["Resources"] for node in self.ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        ]

    def options(self, task: StepTask) -> dict[str, Any]:
        """What Ray must find on one node for the task, and that it never starts a task again by itself."""
        wanted = task.resources
        resources = {} if self.is_local else dict(wanted.custom)  # this machine alone: it has what it has
        return {
            "num_cpus": wanted.cpu,
            "memory": wanted.memory_bytes,
            "num_gpus": wanted.gpu,
            "resources": resources,
            "max_retries": 0,
            "name": task.name,
        }

    def disconnect(self) -> None:
        with suppress(Exception):  # whatever it was, the build is over
            self.ray.shutdown()


def _connect(ray: Any, address: str, jobs: int) -> None:
    quiet = {"logging_level": "ERROR", "log_to_driver": False}
    try:
        if address == "local":
            from llm_build.executors.local import capacity

            mine = capacity(jobs)
            ray.init(
                "local", num_cpus=mine.cpu, include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet
            )
        else:
            _probe(address)
            ray.init(address, **quiet)
    except (ConnectionError, RuntimeError, ValueError, ImportError, OSError) as error:
        raise UserError(
            f"executor.address={address}: no Ray cluster can be reached there: {_first_line(error)}",
            "ray status shows whether one runs; executor.address= takes local, auto, host:port or ray://host:port",
        ) from error


def _probe(address: str) -> None:
    """OSError when nobody listens at host:port: Ray itself would try for minutes. ValueError for other words."""
    import socket

    if address != "auto":
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not (host and port.isdigit()):
            raise ValueError("expected local, auto, host:port or ray://host:port")
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_S).close()


class Mailbox:
    """What running steps say, kept until the coordinator has taken it. An actor, on the coordinator's side."""

    def __init__(self) -> None:
        import asyncio

        self._frames: dict[str, list[Json]] = {}
        self._changed = asyncio.Condition()

    async def put(self, key: str, frame: Json) -> None:
        async with self._changed:
            self._frames.setdefault(key, []).append(frame)
            self._changed.notify_all()

    async def take(self, key: str, seen: int, least: int, timeout_s: float) -> list[Json]:
        """The frames after the first ``seen``, as soon as there are ``least`` in all or time is up."""
        import asyncio

        async with self._changed:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(
                    self._changed.wait_for(lambda: len(self._frames.get(key, ())) >= least), timeout_s
                )
            return self._frames.get(key, [])[seen:]

    async def forget(self, key: str) -> None:
        self._frames.pop(key, None)


def _run_task(request: NodeRequest, mailbox: Any, key: str) -> tuple[Json, int]:
    """The Ray task: the step's TaskDone, and how many frames it has put into the mailbox."""
    from llm_build.executors.node import node_name, run_request

    posted = 0

    def post(frame: Json) -> None:
        nonlocal posted
        posted += 1
        mailbox.put.remote(key, frame)

    post({"began": node_name()})
    return run_request(request, post), posted


class _Lost(Exception):
    """A task whose node or process is gone; the text says which."""


class _Cancelled(Exception):
    """We are stopping."""


class _TaskThread(threading.Thread):
    """Runs one step to its end: its inputs are up, its task runs, again when it is lost, its outputs are here."""

    def __init__(
        self, task: StepTask, store: FileStore, node_store: Callable[[], Path], cluster: _Cluster,
        report: Callable[[TaskReport], None],
    ) -> None:  # fmt: skip
        super().__init__(name=task.name, daemon=True)
        self._step_task = task
        self._store = store
        self._node_store = node_store
        self._cluster = cluster
        self._report = report
        self._stopping = threading.Event()
        self._handle: Any = None
        self._node = "the node"

    def cancel(self, force: bool = False) -> None:
        """``force`` kills the process of the task; otherwise the task ends its step and itself."""
        self._stopping.set()
        if self._handle is not None:
            with suppress(Exception):  # it has ended by itself, or all of Ray has
                self._cluster.ray.cancel(self._handle, force=force)

    def run(self) -> None:
        try:
            done = self._run_to_completion()
        except _Cancelled:
            return
        except BuildError as error:
            done = TaskDone(self._step_task.id, None, error)
        except Exception as error:  # of Ray's own: a build must not wait for a thread that died
            done = TaskDone(self._step_task.id, None, StepError(f"Ray: {type(error).__name__}: {_first_line(error)}"))
        self._report(done)

    def _run_to_completion(self) -> TaskDone:
        remote = None if self._cluster.is_local else location_of(self._store)
        request = request_for(self._step_task, self._store, remote, self._node_store)
        if request.remote:
            self._cluster.blobs.send(request.blobs)
        for attempt in range(2, _TRIES + 2):
            try:
                done = self._attempt(request)
                break
            except _Lost as lost:
                if attempt > _TRIES:
                    raise StepError(f"was lost {_TRIES} times; the last time: {lost}", "ray status") from lost
                self._report(
                    TaskWarned(self._step_task.id, f"{lost}; started again ({attempt} of at most {_TRIES} times)")
                )
        if done.result and request.remote:
            done = done._replace(result=self._cluster.blobs.fetch(done.result))
        return done

    def _attempt(self, request: NodeRequest) -> TaskDone:
        """One task. Raises _Lost and _Cancelled."""
        ray, mailbox = self._cluster.ray, self._cluster.mailbox
        wanted = self._cluster.options(self._step_task)
        _check_placeable(self._step_task, wanted, self._cluster.nodes())
        key = f"{self._step_task.id} {os.urandom(4).hex()}"
        if self._stopping.is_set():
            raise _Cancelled
        self._handle = self._cluster.run.options(**wanted).remote(request, mailbox, key)
        received = 0
        try:
            while True:
                request_for_frames = mailbox.take.remote(key, received, received + 1, _POLL_S)
                ready, _ = ray.wait([self._handle, request_for_frames], num_returns=1)
                if self._handle in ready:
                    break
                frames = ray.get(request_for_frames)
                self._handle_frames(frames)
                received += len(frames)
                if not received:
                    _check_placeable(self._step_task, wanted, self._cluster.nodes())
            done, total = self._result()
            self._handle_frames(ray.get(mailbox.take.remote(key, received, total, _POLL_S)))
            return done
        except UserError:  # it waits for a node that is gone
            ray.cancel(self._handle)
            raise
        finally:
            mailbox.forget.remote(key)

    def _result(self) -> tuple[TaskDone, int]:
        errors = self._cluster.ray.exceptions
        try:
            done, total = self._cluster.ray.get(self._handle)
        except errors.RayError as error:
            if self._stopping.is_set():
                raise _Cancelled from error
            if isinstance(error, errors.RayTaskError):
                raise StepError(f"the task failed: {_last_line(error)}", _NOT_INSTALLED) from error
            what = _LOST.get(type(error).__name__, f"was lost ({type(error).__name__}: {_first_line(error)})")
            raise _Lost(f"{self._node} {what}") from error
        report = report_from_json(done)
        assert isinstance(report, TaskDone)
        return report, total

    def _handle_frames(self, frames: list[Json]) -> None:
        for frame in frames:
            if "log" in frame:
                write_log(self._step_task.scratch / "log", frame["log"], frame["at"])
            elif "began" in frame:
                self._node = frame["began"]
            else:
                self._report(report_from_json(frame))


def _check_placeable(task: StepTask, wanted: Mapping[str, Any], nodes: list[Mapping[str, float]]) -> None:
    """Raises UserError when no living node could ever run the task: Ray would wait for one without a word."""
    needs = {"CPU": wanted["num_cpus"], "GPU": wanted["num_gpus"], "memory": wanted["memory"], **wanted["resources"]}
    if any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
        return
    absent = [name for name in wanted["resources"] if not any(name in node for node in nodes)]
    if absent:
        raise UserError(
            f"{task.name} needs {' and '.join(absent)}, which no node of the Ray cluster declares",
            f"start the nodes that have it with: ray start --resources='{{\"{absent[0]}\": 1}}' ..., or executor=local",
        )
    wanted_text = ", ".join(f"{name} {amount:g}" for name, amount in needs.items() if amount)
    raise UserError(
        f"{task.name} needs {wanted_text} on one node, and no node of the Ray cluster has all of it", "ray status"
    )


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
