"""`build gc`: free what nothing refers to any more, by age and by size; with --remote in the shared store. A dry run
unless --yes."""

from __future__ import annotations

import re

from llm_build.app.places import places_of
from llm_build.app.request import compose_one
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.core.errors import UserError
from llm_build.core.filestore import open_store
from llm_build.core.gc import Freed, gc
from llm_build.core.units import count_of, format_bytes

_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def show(arguments: Arguments) -> int:
    options = arguments.options
    age = _parse_age(options.max_age) if options.max_age else None
    if options.remote:
        return _collect_remote(arguments, age)
    nbytes = _parse_size(options.max_size) if options.max_size else None
    store = open_store(places_of(compose_one(arguments.build)).store)
    freed = gc(store, age, nbytes, dry_run=not options.yes)
    if options.json:
        print_document({"dry_run": not options.yes, **freed._asdict()})
    else:
        _print_freed(freed, options.yes)
    return 0


def _print_freed(freed: Freed, really: bool) -> None:
    if not freed.blobs and not freed.records:
        print(f"nothing to free; {format_bytes(freed.kept_nbytes)} stay")
        print("  next: build gc --max-age 30d   (or --max-size 20GB; both free results that are whole)")
        return
    what = f"{count_of(freed.blobs, 'file')} and {count_of(len(freed.records), 'result')}"
    verb, kept = "freed" if really else "would free", format_bytes(freed.kept_nbytes)
    print(f"{verb} {format_bytes(freed.nbytes)} in {what}; {kept} stay")
    if freed.linked_nbytes:
        linked = format_bytes(freed.linked_nbytes)
        print(f"  {linked} of it is linked from a dist folder and stays on disk until that is removed")
    if not really:
        print("  next: build gc --yes   (--max-age 30d and --max-size 20GB free more)")


def _collect_remote(arguments: Arguments, age_s: float | None) -> int:
    from llm_build.app.gc_remote import collect_remote

    options = arguments.options
    if options.max_size:
        raise UserError("--max-size is for the store of this machine", "build gc --remote --max-age 90d")
    collected = collect_remote(arguments.build, age_s, dry_run=not options.yes)
    freed = collected.freed
    if options.json:
        print_document({"dry_run": not options.yes, "roots": collected.roots, **freed._asdict()})
        return 0
    what = f"{count_of(freed.blobs, 'file')} and {count_of(len(freed.records), 'result')}"
    verb, kept = "freed" if options.yes else "would free", format_bytes(freed.kept_nbytes)
    print(f"{verb} {format_bytes(freed.nbytes)} in {what} of {collected.url}; {kept} stay")
    if not options.yes:
        print("  next: build gc --remote --yes   (--max-age 90d frees results that were not pushed for so long)")
    return 0


def _parse_age(text: str) -> float:
    """Seconds. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if match is None:
        raise UserError(f"--max-age {text}: expected a number and s, m, h, d or w", "build gc --max-age 30d")
    return float(match[1]) * _AGES[match[2]]


def _parse_size(text: str) -> int:
    """Bytes. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in _SIZES:
        raise UserError(f"--max-size {text}: expected a size such as 500MB or 20GB", "build gc --max-size 20GB")
    return int(float(match[1]) * _SIZES[match[2]])
