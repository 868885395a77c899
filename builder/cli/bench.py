"""`build bench`: bring recipes up to date, then measure each artifact on this machine, or show what was measured."""

from __future__ import annotations

import sys

from llm_build.app.bench import bench, bench_document
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.failures import print_failures
from llm_build.cli.output import print_document, print_recipe, refused_code
from llm_build.cli.session import for_each_request, session_of


def show(arguments: Arguments) -> int:
    return for_each_request(arguments, _bench)


def _bench(arguments: Arguments, request: BuildRequest) -> int:
    options = arguments.options
    benched = bench(arguments.build, request, session_of(arguments), options.again)
    (outcome, request), measured = (benched.result.outcome, benched.result.request), benched.measured
    rows = bench_document(benched)
    if options.json:
        print_document(rows)
    else:
        from llm_build.report.bench import print_bench

        for row in rows["recipes"]:
            if row["status"] in ("failed", "unsupported"):
                print_recipe(row, sys.stdout, options.quiet)
        print_bench([row for row in rows["recipes"] if "bench" in row], sys.stdout)
    print_failures(request, outcome, options.debug)
    print_failures(request, measured, options.debug)
    return outcome.exit_code or measured.exit_code or refused_code(arguments, request)
