"""`build why STEP`: the parts of a step's key, now and last time."""

from __future__ import annotations

import json
import re
import sys

from builder.app.request import UNDECIDED, Job, job_of
from builder.cli.arguments import Arguments
from builder.core.errors import UserError
from builder.core.reason import Difference
from builder.core.why import Explanation, explain
from builder.planner.graph import bench

CODE = "code."
HEX = re.compile(
    r"\b((?:sha256|blake3):[0-9a-f]{12})[0-9a-f]{52}"
)  # a digest is known by its beginning; --json has all


def show(arguments: Arguments) -> int:
    """Raises UserError for a step that the plan has not (with the names it has), and for a sweep."""
    if arguments.options.multirun:
        raise UserError(
            "build why explains a step of one recipe, and -m asks for many", "the same with one value of each"
        )
    job = job_of(arguments)
    found = found_in(job, arguments.word)
    if arguments.options.json:
        json.dump(plain(found), sys.stdout, indent=1)
        print()
        return 0
    print(f"{found.step.name}: {found.status}" + (f" ({found.reason})" if found.reason else ""))
    print(f"  key now   {found.key or 'not known before its inputs are'}")
    print(f"  key last  {found.last_key or 'none: never built here'}")
    for difference in found.differences:
        print(f"  differs   {told(difference)}")
    print("  parts of the key now:")
    print_parts(found.parts, "    ")
    return 0


def told(difference: Difference) -> str:
    """One difference in a line: of code and files that it is one, of values both."""
    what, last, now = difference.what, *(HEX.sub(r"\1", text) for text in (difference.last, difference.now))
    if what.startswith(CODE):
        return f"{what.removeprefix(CODE)} was {'changed' if last and now else 'added' if now else 'removed'}"
    return f"{what}: {last or 'absent'} → {now or 'absent'}"


def found_in(job: Job, step: str) -> Explanation:
    plan = job.plan
    if step == bench.NAME:  # which is planned by its own command only
        from builder.cli.bench import plan_of

        plan = plan_of([recipe for recipe in job.recipes if not recipe.undecided], plan)
    try:
        return explain(plan, job.store, step)
    except UserError as error:
        if not any(recipe.undecided for recipe in job.recipes):
            raise
        raise UserError(f"{error.message}; {UNDECIDED}", "build plan") from error


def plain(found: Explanation) -> dict[str, object]:
    return {
        "step": found.step.name,
        "status": found.status,
        "reason": found.reason,
        "key": found.key,
        "parts": found.parts,
        "last_key": found.last_key,
        "last_parts": found.last_parts,
        "differences": [d._asdict() for d in found.differences],
    }


def print_parts(parts: object, indent: str) -> None:
    """Nested parts, a line each; long lists are cut."""
    if not isinstance(parts, dict):
        print(f"{indent}{parts}")
        return
    for count, (name, value) in enumerate(parts.items()):
        if count == 40:
            print(f"{indent}... and {len(parts) - count} more (--json shows all)")
            return
        if isinstance(value, dict) and value:
            print(f"{indent}{name}:")
            print_parts(value, indent + "  ")
        else:
            text = json.dumps(value) if not isinstance(value, str) else value
            print(f"{indent}{name}: {text if len(text) <= 100 else text[:97] + '...'}")
