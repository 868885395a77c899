"""`build lock`: bring recipes up to date and write down what they are made of. `--check` compares, builds nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from builder.app.lock_check import SHOWN, Held, differences, held_to, read_checkpoints
from builder.app.lock_state import state_of
from builder.app.request import Job, folders_of, is_sweep, job_of, merge, pinned
from builder.cli.arguments import Arguments
from builder.cli.build import bring_up_to_date, events_to, finish, relative
from builder.core.errors import UserError
from builder.provenance.diff.locks import Moved, line
from builder.provenance.lock_file import Lock, destination, read, text_of, write
from builder.report import document


def show(arguments: Arguments) -> int:
    """One recipe, or with -m a sweep. Raises UserError for what cannot be locked."""
    do = check if arguments.options.check else lock
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(arguments, lambda jobs: do(arguments, merge(pinned(arguments, jobs), folders_of(arguments))))
    return do(arguments, job_of(arguments))


def lock(arguments: Arguments, job: Job) -> int:
    """Builds what is stale, then writes the file. A build that fails leaves it as it was."""
    options = arguments.options
    path = destination(arguments.overrides, job.names, options.file)
    if job.refused and not options.allow_unsupported:
        name, error = next(iter(job.refused.items()))
        raise UserError(f"{len(job.refused)} of {len(job.names)} builds cannot be locked here; {name}: {error.message}",
                        error.hint)  # fmt: skip
    result = bring_up_to_date(arguments, job, events_to(arguments))
    code = result.outcome.exit_code
    if code or not options.json:
        finish(arguments, result)
    if code:
        return code
    state = state_of(result.job)
    before = earlier(path)
    found = differences(before, state, result.job) if before else []
    changed = write(path, text_of(state.lock, " ".join(["build lock", *arguments.overrides])))
    if options.json:
        whole = document.built(result.outcome, result.job.outputs)
        tell({**whole, "lock": str(path), "changed": changed, "moved": rows(found)})
    else:
        print(f"{shown(path)}: {'written' if changed else 'as it was'}{listed(found)}")
    return 0


def earlier(path: Path) -> Lock | None:
    """The lock that is about to be replaced; None when there is none that can be read."""
    try:
        return read(path)
    except UserError:
        return None


def check(arguments: Arguments, job: Job) -> int:
    """0 when all that is known without building matches the lock, else 2. Reads a checkpoint that is on this disk."""
    options = arguments.options
    held = held_to(arguments, job.names[0])
    read_checkpoints(arguments, job)
    state = state_of(job)
    found = differences(held.lock, state, job)
    built = [name for name, cell in state.lock.cells.items() if cell.outputs]
    if options.json:
        tell({"lock": str(held.path), "matches": not found, "built": built, "moved": rows(found)})
    else:
        print_checked(held, found, len(built), len(job.names))
    return 2 if found else 0


def print_checked(held: Held, found: list[Moved], built: int, cells: int) -> None:
    if found:
        print(f"{shown(held.path)} does not match; moved:{listed(found)}", file=sys.stderr)
        print(f"  next: bring back what moved, or accept it: {held.command}", file=sys.stderr)
        return
    known = "" if built == cells else f" as far as is known without building ({built} of {cells} built here)"
    print(f"{shown(held.path)}: matches{known}")


def listed(found: list[Moved]) -> str:
    more = f"\n  and {len(found) - SHOWN} more (--json shows all)" if len(found) > SHOWN else ""
    return "".join(f"\n  {line(each)}" for each in found[:SHOWN]) + more


def rows(found: list[Moved]) -> list[dict[str, Any]]:
    return [{"cells": list(each.cells), **each.difference._asdict()} for each in found]


def shown(path: Path) -> str:
    return relative(path).rstrip("/")


def tell(whole: dict[str, Any]) -> None:
    json.dump(whole, sys.stdout, indent=1)
    print()
