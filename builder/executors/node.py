"""A step on a node of a cluster: what it reads is brought in, it runs in a worker process, what it made is sent out.

Knows nothing of Ray: ray.py calls ``run_order`` in a task, tests call it directly."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from builder.core.errors import BuildError, UserError
from builder.core.filestore import FileStore
from builder.core.record import Output
from builder.core.step import File, Json, Resources
from builder.core.task import Job, JobDone
from builder.executors.local import LocalExecutor
from builder.executors.log import Tail
from builder.executors.messages import report_to_json
from builder.executors.node_request import PACKAGE, Order, code_digest, tool_versions
from builder.remote.location import Location
from builder.remote.store import open_shared

POLL_S = 0.1

Post = Callable[[Json], None]


def host() -> str:
    return f"node {platform.node()}"


def run_order(order: Order, post: Post) -> Json:
    """Run the step and return its ``JobDone`` as JSON. ``post`` hears what it says meanwhile: reports as wire.py
    writes them, and {"log": text, "at": bytes before it}."""
    try:
        check_same(order)
        if order.remote is None or _is_here(order):
            done = _with_coordinators_store(order, post)
        else:
            done = _with_own_store(order, order.remote, post)
    except BuildError as error:
        kind = UserError if isinstance(error, UserError) else type(error)
        done = JobDone(order.job.id, None, kind(f"{host()}: {error.message}", error.hint))
    return report_to_json(done)


def check_same(order: Order) -> None:
    """Raises UserError where this node would make something else of the step than the coordinator."""
    if order.code != code_digest():
        raise UserError(
            f"the code of llm-build at {PACKAGE} is not that of the machine which plans ({order.package})",
            "install the same version on every node, and restart its Ray workers",
        )
    for tool, wanted in order.tools.items():
        if (found := tool_versions()[tool]) != wanted:
            raise UserError(
                f"{tool} is {found} here and {wanted} on the machine which plans", f"pip install {tool}=={wanted}"
            )
    for path, seen in order.outside.items():
        _check_visible(path, _moved(path, order, order.root), seen)


def _check_visible(path: str, here: str, seen: tuple[int, int]) -> None:
    way_out = "every node must see it under the same path (a shared folder, or a copy made with rsync -a)"
    try:
        status = os.stat(here)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", way_out) from error
    same = (status.st_size, status.st_mtime_ns) == seen
    if not same and (path == here or status.st_size != seen[0]):  # installing the package gives its files new times
        raise UserError(f"{path} has another size or time than on the machine which plans", way_out)


# Where things are


def _is_here(order: Order) -> bool:
    """Whether this node's own store is the coordinator's: then there is nothing to bring."""
    with suppress(OSError):
        return order.job.scratch.is_dir() and os.path.samefile(order.root, order.node_store())
    return False


def _moved(path: str, order: Order, root: Path) -> str:
    """A path of the coordinator's machine on this one."""
    for theirs, ours in ((order.root / "blobs", root / "blobs"), (order.package, PACKAGE)):
        if path.startswith(f"{theirs}{os.sep}"):
            return f"{ours}{path[len(str(theirs)) :]}"
    return path


def _moved_job(order: Order, root: Path, scratch: Path) -> Job:
    def file(each: File) -> File:
        return File(Path(_moved(str(each.path), order, root)), each.digest, each.nbytes, each.offset)

    job = order.job
    inputs = {
        port: file(files) if isinstance(files, File) else {name: file(each) for name, each in files.items()}
        for port, files in job.inputs.items()
    }
    context = {k: _moved(v, order, root) if isinstance(v, str) else v for k, v in job.context.items()}
    return job._replace(inputs=inputs, context=context, scratch=scratch)


# Running


def _with_coordinators_store(order: Order, post: Post) -> JobDone:
    scratch = order.job.scratch
    if not scratch.is_dir():
        raise UserError(
            f"does not see the store of the machine which plans ({order.root})",
            "set store.remote= to a place that every node reaches (s3://..., file:///nfs/...): steps exchange their "
            "results there",
        )
    return _run(FileStore(order.root), _moved_job(order, order.root, scratch), post, log=False)


def _with_own_store(order: Order, remote: Location, post: Post) -> JobDone:
    store = open_shared(order.node_store(), remote)
    store.start()
    try:
        store.bring({digest: Output(digest, nbytes) for digest, nbytes in order.blobs.items()})
        scratch = store.scratch()
        done = _run(store, _moved_job(order, store.root, scratch), post, log=True)
        store.discard(scratch)
        if done.result:
            store.send(done.result.outputs)
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


def _run(store: FileStore, job: Job, post: Post, log: bool) -> JobDone:
    pool = _pool(store)
    tail = Tail(job.scratch / "log")
    try:
        pool.submit(job)
        while True:
            reports = pool.wait(POLL_S)
            for frame in tail.read() if log else ():
                post(frame)
            for report in reports:
                if isinstance(report, JobDone):
                    return report
                post(report_to_json(report))
    except BaseException:  # cancelled
        pool.stop()
        raise
