"""`build why STEP`: the parts of a step's key, now and last time."""

from __future__ import annotations

import json
import re

from llm_build.app.merge import request_of
from llm_build.app.why import explain_step, operator_kernels
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.core.errors import UserError
from llm_build.core.reason import Difference
from llm_build.core.units import count_of
from llm_build.core.why import Explanation
from llm_build.report.operators import describe_kernels

_CODE = "code."
_MOST = 120  # parts of one kind that are printed
_HEX = re.compile(
    r"\b((?:sha256|blake3):[0-9a-f]{12})[0-9a-f]{52}"
)  # a digest is known by its beginning; --json has all


def show(arguments: Arguments) -> int:
    """Raises UserError for a step that the plan has not (with the names it has), and for a sweep."""
    if arguments.build.multirun:
        raise UserError(
            "build why explains a step of one recipe, and -m asks for many", "the same with one value of each"
        )
    request = request_of(arguments.build)
    explanation = explain_step(request, arguments.word)
    kernels = operator_kernels(request, explanation)
    if arguments.options.json:
        print_document({**_explanation_document(explanation), **({"operators": kernels} if kernels else {})})
        return 0
    _print_explanation(explanation)
    if kernels:
        print("  kernels of the last library, and what they were chosen by:")
        print("\n".join(f"    {line}" for line in describe_kernels(kernels)))
    return 0


def _print_explanation(explanation: Explanation) -> None:
    reason = f" ({explanation.reason})" if explanation.reason else ""
    print(f"{explanation.step.name}: {explanation.status}{reason}")
    print(f"  key now   {explanation.key or 'not known before its inputs are'}")
    print(f"  key last  {explanation.last_key or 'none: never built here'}")
    for difference in explanation.differences:
        print(f"  differs   {format_difference(difference)}")
    print("  parts of the key now:")
    _print_parts(explanation.parts, "    ")
    print(f"  code in the key now, {count_of(len(explanation.files), 'file')}:")
    for file, digest in sorted(explanation.files.items()):
        print(f"    {digest.partition(':')[2][:12]}  {file}")


def format_difference(difference: Difference) -> str:
    """One difference in a line: of code and files that it is one, of values both."""
    what, last, now = difference.what, *(_HEX.sub(r"\1", text) for text in (difference.last, difference.now))
    if what.startswith(_CODE):
        return f"{what.removeprefix(_CODE)} was {'changed' if last and now else 'added' if now else 'removed'}"
    return f"{what}: {last or 'absent'} → {now or 'absent'}"


def _explanation_document(explanation: Explanation) -> dict[str, object]:
    return {
        "step": explanation.step.name,
        "status": explanation.status,
        "reason": explanation.reason,
        "key": explanation.key,
        "parts": explanation.parts,
        "last_key": explanation.last_key,
        "last_parts": explanation.last_parts,
        "differences": [d._asdict() for d in explanation.differences],
        "files": dict(sorted(explanation.files.items())),
    }


def _print_parts(parts: object, indent: str) -> None:
    """Nested parts, a line each; long lists are cut."""
    if not isinstance(parts, dict):
        print(f"{indent}{parts}")
        return
    for count, (name, value) in enumerate(parts.items()):
        if count == _MOST:
            print(f"{indent}... and {len(parts) - count} more (--json shows all)")
            return
        if isinstance(value, dict) and value:
            print(f"{indent}{name}:")
            _print_parts(value, indent + "  ")
        else:
            text = json.dumps(value) if not isinstance(value, str) else value
            print(f"{indent}{name}: {text if len(text) <= 100 else text[:97] + '...'}")
