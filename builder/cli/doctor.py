"""`build doctor`: the tools and devices found here, and what each missing one is needed for."""

from __future__ import annotations

import sys

from llm_build.app.doctor import check_store, diagnose
from llm_build.app.places import places_of
from llm_build.app.request import compose_one
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.core.filestore import open_store
from llm_build.core.units import format_bytes

_MARKS = {"ok": "✓", "missing": "–", "bad": "✗"}


def show(arguments: Arguments) -> int:
    """With --store also every byte of the store is read; returns 1 when something that a build needs is not right."""
    options, store = arguments.options, places_of(compose_one(arguments.build)).store
    rows = diagnose(store)
    if options.store or options.repair:
        progress = _print_progress if sys.stderr.isatty() else None
        rows += check_store(open_store(store), options.repair, progress)
    if options.json:
        print_document({"checks": rows})
    else:
        for row in rows:
            used_for = f"   ({row['for']})" if row["status"] != "ok" else ""
            print(f"{_MARKS[row['status']]} {row['name']:<18} {row['found']}{used_for}")
    return 1 if any(row["status"] == "bad" for row in rows) else 0


def _print_progress(done: int, total: int) -> None:
    """How far the reading is, on one line of a terminal that is wiped in the end."""
    end = "\r\033[K" if done == total else "\r"
    print(f"\rreading {format_bytes(done)} of {format_bytes(total)}", end=end, file=sys.stderr, flush=True)
