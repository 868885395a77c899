"""`build diff A B`: what differs between two recipes, locks or built folders."""

from __future__ import annotations

from llm_build.app.diff import diff
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.provenance.diff.report import format_comparison


def show(arguments: Arguments) -> int:
    """Overrides on the line are of both recipes. 0 also where something differs: --json has "same"."""
    comparison = diff(arguments.build, arguments.word, arguments.other)
    if arguments.options.json:
        print_document(comparison)
    else:
        print("\n".join(format_comparison(comparison)))
    return 0
