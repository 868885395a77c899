"""`build gc --remote`: free what nothing refers to any more in the shared store."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from builder.app.request import folders_of, merge, verdicts
from builder.app.share import shared_of
from builder.cli.arguments import Arguments
from builder.config.choices import Composed
from builder.core.errors import UserError
from builder.core.units import format_bytes
from builder.planner import resolve
from builder.provenance.lock_file import ENDING, read
from builder.remote.bucket import Away, Refused
from builder.remote.gc import gc
from builder.remote.store import SharedStore

ELSEWHERE = ("store.", "dist.")  # overrides that say where things are, and nothing of what is to stay


def collect(arguments: Arguments, composed: Composed, max_age_s: float | None) -> int:
    """``max_age_s``: of manifests. Raises UserError and, when the shared store is away, StepError."""
    options = arguments.options
    if options.max_size:
        raise UserError("--max-size is for the store of this machine", "build gc --remote --max-age 90d")
    store = shared_of(resolve.open_at(resolve.places(composed)), writes=options.yes)
    roots = locked() | (asked_for(arguments, composed) if names_a_recipe(arguments) else set())
    store.connection.open()
    try:
        freed = gc(store.connection.bucket(), store.location.transfers, max_age_s, roots, not options.yes)
    except (Away, Refused) as error:
        store.connection.lose(error)
        raise store.connection.trouble() or error from error
    if options.json:
        json.dump({"dry_run": not options.yes, "roots": len(roots), **freed._asdict()}, sys.stdout, indent=1)
        print()
        return 0
    verb = "freed" if options.yes else "would free"
    said = f"{freed.blobs} files and {len(freed.records)} results"
    print(
        f"{verb} {format_bytes(freed.nbytes)} in {said} of {store.location.url}; {format_bytes(freed.kept_nbytes)} stay"
    )
    if not options.yes:
        print("  next: build gc --remote --yes   (--max-age 90d frees results that were not pushed for so long)")
    return 0


def locked() -> set[str]:
    """Keys of the artifacts that lock files of the current folder name."""
    cells = [cell for path in sorted(Path("recipes").glob(f"*{ENDING}")) for cell in read(path).cells.values()]
    return {key for cell in cells for key in cell.steps.values()}


def names_a_recipe(arguments: Arguments) -> bool:
    return any(not o.lstrip("+~").startswith(ELSEWHERE) for o in arguments.overrides)


def asked_for(arguments: Arguments, composed: Composed) -> set[str]:
    """Keys of all steps of the recipe on the command line, as far as their results are known."""
    job = merge([composed], folders_of(arguments))
    store: SharedStore = shared_of(job.store)
    return {verdict.key for verdict in verdicts(job.plan, store).values() if verdict.key}
