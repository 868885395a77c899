"""A step on a node of a cluster: what it reads is brought in, it runs in a worker process, what it made is sent out.

Knows nothing of Ray: ray.py calls ``run_request`` in a task, tests call it directly."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llm_build.core.errors import BuildError, UserError
from llm_build.core.filestore import FileStore
from llm_build.core.record import Output
from llm_build.core.step import Resources
from llm_build.core.step_io import File, Json
from llm_build.core.task import StepTask, TaskDone
from llm_build.executors.local import LocalExecutor
from llm_build.executors.log import Tail
from llm_build.executors.messages import report_to_json
from llm_build.executors.node_request import PACKAGE, NodeRequest, code_digest, tool_versions
from llm_build.remote.location import Location
from llm_build.remote.store import open_shared

POLL_S = 0.1

PostMessage = Callable[[Json], None]


def node_name() -> str:
    return f"node {platform.node()}"


def run_request(request: NodeRequest, post: PostMessage) -> Json:
    """Run the step and return its ``TaskDone`` as JSON. ``post`` hears what it says meanwhile: reports as messages.py
    writes them, and {"log": text, "at": bytes before it}."""
    try:
        _check_same_installation(request)
        if request.remote is None or _is_here(request):
            done = _with_coordinators_store(request, post)
        else:
            done = _with_own_store(request, request.remote, post)
    except BuildError as error:
        kind = UserError if isinstance(error, UserError) else type(error)
        done = TaskDone(request.task.id, None, kind(f"{node_name()}: {error.message}", error.hint))
    return report_to_json(done)


def _check_same_installation(request: NodeRequest) -> None:
    """Raises UserError where this node would make something else of the step than the coordinator."""
    if request.code != code_digest():
        raise UserError(
            f"the code of llm-build at {PACKAGE} is not that of the machine which plans ({request.package})",
            "install the same version on every node, and restart its Ray workers",
        )
    for tool, expected in request.tools.items():
        if (version := tool_versions()[tool]) != expected:
            raise UserError(
                f"{tool} is {version} here and {expected} on the machine which plans", f"pip install {tool}=={expected}"
            )
    for path, seen in request.outside.items():
        _check_visible(path, _local_path(path, request, request.root), seen)


def _check_visible(path: str, here: str, seen: tuple[int, int]) -> None:
    hint = "every node must see it under the same path (a shared folder, or a copy made with rsync -a)"
    try:
        status = os.stat(here)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", hint) from error
    same = (status.st_size, status.st_mtime_ns) == seen
    if not same and (path == here or status.st_size != seen[0]):  # installing the package gives its files new times
        raise UserError(f"{path} has another size or time than on the machine which plans", hint)


# Where things are


def _is_here(request: NodeRequest) -> bool:
    """Whether this node's own store is the coordinator's: then there is nothing to download."""
    with suppress(OSError):
        return request.task.scratch.is_dir() and os.path.samefile(request.root, request.node_store())
    return False


def _local_path(path: str, request: NodeRequest, root: Path) -> str:
    """A path of the coordinator's machine on this one."""
    for theirs, ours in ((request.root / "blobs", root / "blobs"), (request.package, PACKAGE)):
        if path.startswith(f"{theirs}{os.sep}"):
            return f"{ours}{path[len(str(theirs)) :]}"
    return path


def _localize_task(request: NodeRequest, root: Path, scratch: Path) -> StepTask:
    def file(each: File) -> File:
        return File(Path(_local_path(str(each.path), request, root)), each.digest, each.nbytes, each.offset)

    task = request.task
    inputs = {
        port: file(files) if isinstance(files, File) else {name: file(each) for name, each in files.items()}
        for port, files in task.inputs.items()
    }
    context = {k: _local_path(v, request, root) if isinstance(v, str) else v for k, v in task.context.items()}
    return task._replace(inputs=inputs, context=context, scratch=scratch)


# Running


def _with_coordinators_store(request: NodeRequest, post: PostMessage) -> TaskDone:
    scratch = request.task.scratch
    if not scratch.is_dir():
        raise UserError(
            f"does not see the store of the machine which plans ({request.root})",
            "set store.remote= to a place that every node reaches (s3://..., file:///nfs/...): steps exchange their "
            "results there",
        )
    return _run(FileStore(request.root), _localize_task(request, request.root, scratch), post, log=False)


def _with_own_store(request: NodeRequest, remote: Location, post: PostMessage) -> TaskDone:
    store = open_shared(request.node_store(), remote)
    store.start()
    try:
        store.download({digest: Output(digest, nbytes) for digest, nbytes in request.blobs.items()})
        scratch = store.scratch()
        done = _run(store, _localize_task(request, store.root, scratch), post, log=True)
        store.discard(scratch)
        if done.result:
            store.upload(done.result.outputs)
        return done
    finally:
        store.stop()
        store.close()


class _Pool:
    """The worker of this process: it stays, with what it has imported, from one step to the next."""

    executor: LocalExecutor | None = None
    setting: tuple[Path, str | None] | None = None


def _pool(store: FileStore) -> LocalExecutor:
    setting = (store.root, os.environ.get("CUDA_VISIBLE_DEVICES"))  # Ray gives each task its GPUs by this variable
    if _Pool.executor is None or _Pool.setting != setting:
        if _Pool.executor:
            _Pool.executor.__exit__(None, None, None)
        _Pool.executor, _Pool.setting = LocalExecutor(store, Resources()), setting
    return _Pool.executor


def _run(store: FileStore, task: StepTask, post: PostMessage, log: bool) -> TaskDone:
    pool = _pool(store)
    tail = Tail(task.scratch / "log")
    try:
        pool.submit(task)
        while True:
            reports = pool.wait(POLL_S)
            for frame in tail.read() if log else ():
                post(frame)
            for report in reports:
                if isinstance(report, TaskDone):
                    return report
                post(report_to_json(report))
    except BaseException:  # cancelled
        pool.stop()
        raise
