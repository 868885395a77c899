"""Bring recipes up to date and write down what they are made of, or compare with what was written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm_build.app.build import BuildResult, bring_up_to_date
from llm_build.app.lock_check import LockCheck, lock_check_of, lock_differences, read_checkpoints
from llm_build.app.lock_state import lock_state
from llm_build.app.options import BuildOptions
from llm_build.app.request import BuildRequest
from llm_build.app.session import Session
from llm_build.core.errors import UserError
from llm_build.core.units import count_of
from llm_build.provenance.diff.locks import LockDifference
from llm_build.provenance.lock_file import Lock, destination, read, text_of, write


class WrittenLock(NamedTuple):
    """``path`` is None when the build failed, and nothing was written. ``changed``: the file has other content now."""

    result: BuildResult
    path: Path | None
    changed: bool = False
    differences: Sequence[LockDifference] = ()


class CheckedLock(NamedTuple):
    """``built``: the cells whose files are known; of the others only what they are made from was compared."""

    lock: LockCheck
    differences: list[LockDifference]
    built: list[str]


def write_lock(
    options: BuildOptions, request: BuildRequest, session: Session, allow_unsupported: bool = False
) -> WrittenLock:
    """Builds what is stale, then writes the file. A build that fails leaves it as it was. Raises UserError for a
    request with cells that cannot be built here, unless they are allowed."""
    path = destination(options.overrides, request.names, options.lock_file)
    if request.refused and not allow_unsupported:
        name, error = next(iter(request.refused.items()))
        count = f"{len(request.refused)} of {count_of(len(request.names), 'build')}"
        raise UserError(f"{count} cannot be locked here; {name}: {error.message}", error.hint)
    result = bring_up_to_date(options, request, session)
    if result.outcome.exit_code:
        return WrittenLock(result, None)
    state, before = lock_state(result.request), _earlier(path)
    differences = lock_differences(before, state, result.request) if before else []
    changed = write(path, text_of(state.lock, " ".join(["build lock", *options.overrides])))
    return WrittenLock(result, path, changed, differences)


def _earlier(path: Path) -> Lock | None:
    """The lock that is about to be replaced; None when there is none that can be read."""
    try:
        return read(path)
    except UserError:
        return None


def check_lock(options: BuildOptions, request: BuildRequest, session: Session) -> CheckedLock:
    """Compares all that is known without building with the lock. Reads a checkpoint that is on this disk."""
    lock = lock_check_of(options, request.names[0])
    read_checkpoints(options, request, session)
    state = lock_state(request)
    built = [name for name, cell in state.lock.cells.items() if cell.outputs]
    return CheckedLock(lock, lock_differences(lock.lock, state, request), built)
