"""`build`: bring recipes up to date."""

from __future__ import annotations

import sys
from typing import Any

from llm_build.app.build import BuildResult, bring_up_to_date
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.failures import print_failures
from llm_build.cli.output import print_document, print_recipe, refused_code
from llm_build.cli.session import for_each_request, session_of
from llm_build.report import document


def show(arguments: Arguments) -> int:
    """One recipe, or with -m every combination."""
    return for_each_request(arguments, _build)


def _build(arguments: Arguments, request: BuildRequest) -> int:
    return print_result(arguments, bring_up_to_date(arguments.build, request, session_of(arguments)))


def print_result(arguments: Arguments, result: BuildResult) -> int:
    """The result as a document or as text; returns the exit code."""
    request, options = result.request, arguments.options
    rows = document.with_refused(document.built(result.outcome, request.outputs), request.refused, request.outputs)
    if request.is_sweep:
        from llm_build.app import cells
        from llm_build.cli.matrix import print_sweep

        matrix = cells.after_build(request, result.outcome)
        if options.json:
            rows["matrix"] = cells.matrix_document(matrix)
        else:
            print_sweep(matrix, request, result, sys.stdout)
    elif not options.json:
        for recipe in rows["recipes"]:
            print_recipe(recipe, sys.stdout, options.quiet, result.seconds)
    if any(recipe["status"] == "ran" for recipe in rows["recipes"]):
        _advise(arguments, result, rows)
    if options.json:
        print_document(rows)
    print_failures(request, result.outcome, options.debug)
    return result.outcome.exit_code or refused_code(arguments, request)


def _advise(arguments: Arguments, result: BuildResult, rows: dict[str, Any]) -> None:
    """Where a scheme cost much, what would lose less."""
    from llm_build.app.advice import advise
    from llm_build.cli.advice import add_to_document, print_advice

    advice = advise(result.request, result.outcome)
    add_to_document(rows, advice)
    if not arguments.options.json:
        print_advice(advice, sys.stdout)
