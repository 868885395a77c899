"""`build pull`: a recipe's results from the shared store, into its folder. Builds nothing."""

from __future__ import annotations

import sys

from llm_build.app.pull import Pulled, lock_to_pull, pull, pull_locked
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.build import print_result
from llm_build.cli.output import print_document
from llm_build.cli.session import for_each_request, session_of
from llm_build.core.units import count_of
from llm_build.provenance.statement import NAME


def show(arguments: Arguments) -> int:
    """0 when everything was there. Raises BuildError when the shared store is away or refuses."""
    if lock := lock_to_pull(arguments.build):
        _print_pulled(pull_locked(arguments.build, lock, session_of(arguments)), arguments.options.json)
        return 0
    return for_each_request(arguments, _pull)


def _pull(arguments: Arguments, request: BuildRequest) -> int:
    return print_result(arguments, pull(arguments.build, request, session_of(arguments)))


def _print_pulled(pulled: Pulled, as_json: bool) -> None:
    for name, cell in pulled.cells.items():
        if not cell.explained:
            print(f"warning: no {NAME} of {name} in {pulled.url}", file=sys.stderr)
    if as_json:
        print_document({"pulled": {name: {"output": str(cell.folder)} for name, cell in pulled.cells.items()}})
        return
    for name, cell in pulled.cells.items():
        print(f"{name}: {cell.written} of {count_of(cell.files, 'file')} written to {cell.folder}/")
