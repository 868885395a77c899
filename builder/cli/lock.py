"""`build lock`: bring recipes up to date and write down what they are made of. `--check` compares, builds nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_build.app.lock import CheckedLock, check_lock, write_lock
from llm_build.app.lock_check import SHOWN
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.build import print_result
from llm_build.cli.output import print_document, relative
from llm_build.cli.session import for_each_request, session_of
from llm_build.provenance.diff.locks import LockDifference, format_lock_difference
from llm_build.report import document


def show(arguments: Arguments) -> int:
    """One recipe, or with -m a sweep. Raises UserError for what cannot be locked."""
    if arguments.options.check:
        locked = replace(arguments, build=replace(arguments.build, locked=True))  # at the revisions that the lock has
        return for_each_request(locked, _check)
    return for_each_request(arguments, _lock)


def _lock(arguments: Arguments, request: BuildRequest) -> int:
    options = arguments.options
    written = write_lock(arguments.build, request, session_of(arguments), options.allow_unsupported)
    result, path = written.result, written.path
    if path is None or not options.json:
        print_result(arguments, result)
    if path is None:
        return result.outcome.exit_code
    if options.json:
        rows = document.built(result.outcome, result.request.outputs)
        moved = _rows(written.differences)
        print_document({**rows, "lock": str(path), "changed": written.changed, "moved": moved})
    else:
        verb = "written" if written.changed else "as it was"
        print(f"{_shown(path)}: {verb}{_listed(written.differences)}")
    return 0


def _check(arguments: Arguments, request: BuildRequest) -> int:
    """0 when all that is known without building matches the lock, else 2."""
    checked = check_lock(arguments.build, request, session_of(arguments))
    if arguments.options.json:
        matches = {"matches": not checked.differences, "built": checked.built}
        print_document({"lock": str(checked.lock.path), **matches, "moved": _rows(checked.differences)})
    else:
        _print_checked(checked, len(request.names))
    return 2 if checked.differences else 0


def _print_checked(checked: CheckedLock, cells: int) -> None:
    path, built = _shown(checked.lock.path), len(checked.built)
    if checked.differences:
        print(f"{path} does not match; moved:{_listed(checked.differences)}", file=sys.stderr)
        print(f"  next: bring back what moved, or accept it: {checked.lock.command}", file=sys.stderr)
        return
    known = "" if built == cells else f" as far as is known without building ({built} of {cells} built here)"
    print(f"{path}: matches{known}")


def _listed(differences: Sequence[LockDifference]) -> str:
    more = f"\n  and {len(differences) - SHOWN} more (--json shows all)" if len(differences) > SHOWN else ""
    return "".join(f"\n  {format_lock_difference(each)}" for each in differences[:SHOWN]) + more


def _rows(differences: Sequence[LockDifference]) -> list[dict[str, Any]]:
    return [{"cells": list(each.cells), **each.difference._asdict()} for each in differences]


def _shown(path: Path) -> str:
    return relative(path).rstrip("/")
