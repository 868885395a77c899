"""`build list [GROUP]`: every choice with one line."""

from __future__ import annotations

from llm_build.app.request import folders_of
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.config.choices import GROUPS, choices_of, describe
from llm_build.core.errors import UserError


def show(arguments: Arguments) -> int:
    """Raises UserError for a group that there is not."""
    if arguments.word and arguments.word not in GROUPS:
        raise UserError(f"{arguments.word!r} is no group of choices; allowed: {', '.join(GROUPS)}", "build list")
    folders = folders_of(arguments.build)
    groups = [arguments.word] if arguments.word else list(GROUPS)
    known = {g: {name: describe(file) for name, file in choices_of(g, folders).items()} for g in groups}
    if arguments.options.json:
        print_document(known)
        return 0
    width = max((len(f"{g}={n}") for g, names in known.items() for n in names), default=0)
    for group, names in known.items():
        for name, text in names.items():
            print(f"{f'{group}={name}':<{width}}  {text}")
        print()
    return 0
