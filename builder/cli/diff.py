"""`build diff A B`: what differs between two recipes, locks or built folders."""

from __future__ import annotations

import json
import sys

from builder.app.sides import load
from builder.cli.arguments import Arguments
from builder.config.paths import store_path
from builder.core.filestore import open_store
from builder.provenance.diff.report import compare, lines


def show(arguments: Arguments) -> int:
    """Overrides on the line are of both recipes. 0 also where something differs: --json has "same"."""
    last, now = load(arguments, arguments.word), load(arguments, arguments.other)
    store = last.store or now.store or open_store(store_path())
    whole = compare(last, now, store)
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
    else:
        print("\n".join(lines(whole)))
    return 0
