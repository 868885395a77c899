"""`build gc`: free what nothing refers to any more, by age and by size; with --remote in the shared store. A dry run
unless --yes."""

from __future__ import annotations

import json
import re
import sys

from builder.app.request import composition_cache
from builder.cli.arguments import Arguments
from builder.config.compose import compose
from builder.core.errors import UserError
from builder.core.filestore import open_store
from builder.core.gc import gc
from builder.core.units import format_bytes
from builder.planner import resolve

AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
SIZES = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def show(arguments: Arguments) -> int:
    options = arguments.options
    composed = compose(arguments.overrides, composition_cache(), options.config_dir)
    if options.remote:
        from builder.app.gc_remote import collect

        return collect(arguments, composed, parse_age(options.max_age) if options.max_age else None)
    store = open_store(resolve.places(composed).store)
    age = parse_age(options.max_age) if options.max_age else None
    budget = parse_size(options.max_size) if options.max_size else None
    freed = gc(store, age, budget, dry_run=not options.yes)
    if options.json:
        json.dump({"dry_run": not options.yes, **freed._asdict()}, sys.stdout, indent=1)
        print()
        return 0
    if not freed.blobs and not freed.records:
        print(f"nothing to free; {format_bytes(freed.kept_nbytes)} stay")
        print("  next: build gc --max-age 30d   (or --max-size 20GB; both free results that are whole)")
        return 0
    verb = "freed" if options.yes else "would free"
    said = f"{freed.blobs} files and {len(freed.records)} results"
    print(f"{verb} {format_bytes(freed.nbytes)} in {said}; {format_bytes(freed.kept_nbytes)} stay")
    if freed.linked_nbytes:
        linked = format_bytes(freed.linked_nbytes)
        print(f"  {linked} of it is linked from a dist folder and stays on disk until that is removed")
    if not options.yes:
        print("  next: build gc --yes   (--max-age 30d and --max-size 20GB free more)")
    return 0


def parse_age(text: str) -> float:
    """Seconds. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if match is None:
        raise UserError(f"--max-age {text}: expected a number and s, m, h, d or w", "build gc --max-age 30d")
    return float(match[1]) * AGES[match[2]]


def parse_size(text: str) -> int:
    """Bytes. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if match is None or match[2] not in SIZES:
        raise UserError(f"--max-size {text}: expected a size such as 500MB or 20GB", "build gc --max-size 20GB")
    return int(float(match[1]) * SIZES[match[2]])
