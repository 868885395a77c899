"""`build plan`: what would run and why. Nothing runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from llm_build.app import cells
from llm_build.app.buildable import is_undecided
from llm_build.app.plan import PlanReport, plan, plan_document
from llm_build.app.request import UNDECIDED, BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.matrix import print_matrix, print_refused
from llm_build.cli.output import print_document, print_unsupported, refused_code
from llm_build.cli.session import for_each_request
from llm_build.core.events import Event, Planned, Warned
from llm_build.core.examine import StepStatus
from llm_build.core.units import count_of, format_bytes
from llm_build.planner.feasibility import sizing
from llm_build.planner.feasibility.device_memory import Memory
from llm_build.planner.schemes.stored_bits import StoredBits
from llm_build.report.matrix import Matrix
from llm_build.report.run_state import RunState
from llm_build.report.table import print_steps
from llm_build.report.text import template_name, wrap_text


def show(arguments: Arguments) -> int:
    return for_each_request(arguments, _plan)


def _plan(arguments: Arguments, request: BuildRequest) -> int:
    report = plan(arguments.build, request, _print_warning)
    if arguments.options.json:
        print_document(plan_document(request, report))
    elif request.is_sweep and not arguments.options.steps:
        _print_sweep(request, report)
    else:
        for recipe in plan_document(request, report)["recipes"]:
            _print_recipe(recipe, request, report)
    return refused_code(arguments, request)


def _print_warning(event: Event) -> None:
    if isinstance(event, Warned):
        print(f"warning: {event.message}", file=sys.stderr)


def _print_sweep(request: BuildRequest, report: PlanReport) -> None:
    """The matrix of what is stale, why cells cannot be built, and the steps that would run, alike ones together."""
    matrix = cells.before_build(request, report.verdicts)
    print_matrix(matrix, sys.stdout)
    print_refused(request, sys.stdout)
    todo = [verdict for verdict in report.verdicts.values() if verdict.status != "fresh"]
    print(f"{len(todo)} of {count_of(len(report.verdicts), 'step')} to run" + (":" if todo else ""))
    rows = _stale_rows(request, matrix, todo)
    width = max((len(label) for label, _ in rows), default=0)
    for label, reason in rows:
        print(f"  {label:<{width}}  {reason}")
    if any(recipe.undecided for recipe in request.recipes):
        print(f"  {UNDECIDED}")
    if report.memory:
        print(wrap_text(f"memory of a run: {_memory_range(report.memory)}", sys.stdout))
    if todo:
        print("build plan -m ... --steps shows every step of every cell")


def _stale_rows(request: BuildRequest, matrix: Matrix, todo: list[StepStatus]) -> list[tuple[str, str]]:
    """(label, reason) of the steps to run; those of one name and reason as "3 × quantize"."""
    board = RunState(matrix)
    board(Planned(request.plan))
    alike: dict[tuple[str, str], list[StepStatus]] = {}
    for verdict in todo:
        alike.setdefault((template_name(verdict.step.name), verdict.reason), []).append(verdict)
    return [
        (f"{len(own)} × {name}" if len(own) > 1 else board.label(own[0].step.id, own[0].step.name), reason)
        for (name, reason), own in alike.items()
    ]


def _memory_range(memory: Mapping[str, Memory]) -> str:
    """ "1.2 GB (one cell) to 4.3 GB (another)"."""
    ends = [pick(memory, key=lambda name: memory[name].total) for pick in (min, max)]
    return " to ".join(f"{format_bytes(memory[name].total)} ({name})" for name in ends)


def _print_recipe(row: dict[str, Any], request: BuildRequest, report: PlanReport) -> None:
    """One recipe of the document."""
    if row["status"] == "unsupported":
        print_unsupported(row, sys.stdout)
        return
    todo = [step for step in row["steps"] if step["status"] != "fresh"]
    summary = f"{len(todo)} of {count_of(len(row['steps']), 'step')} to run" if todo else "nothing to do"
    print(f"{row['name']}: {summary}")
    print_steps(row, sys.stdout)
    if is_undecided(request, row["name"]):
        print(f"  {UNDECIDED}")
        return
    recipe = next(each for each in request.recipes if each.name == row["name"])
    memory = sizing.describe_memory(report.memory[recipe.name], recipe.metadata, recipe.target)
    print(wrap_text(f"memory   {memory}", sys.stdout))
    print(f"weights  {_describe_bits(report.bits[recipe.name])}")


def _describe_bits(bits: StoredBits) -> str:
    total = f"{bits.total:.2f} bits per weight"
    return total if bits.quantized is None else f"{bits.quantized:.2f} bits per weight where quantized, {total} in all"
