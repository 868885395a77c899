"""What several verbs print: a document for programs, a recipe for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.core.units import count_of, format_bytes
from llm_build.report.text import format_seconds, wrap_text


def print_document(content: object) -> None:
    """JSON on standard output."""
    json.dump(content, sys.stdout, indent=1)
    print()


def refused_code(arguments: Arguments, request: BuildRequest) -> int:
    """2 when a cell of a sweep was refused, unless that was expected: who asked for twenty folders must hear of 19."""
    return 2 if request.refused and not arguments.options.allow_unsupported else 0


def print_recipe(recipe: dict[str, Any], stream: TextIO, quiet: bool, seconds: float = 0.0) -> None:
    """``seconds``: what the build took, from its start to its last file."""
    ran = [s for s in recipe["steps"] if s["status"] != "fresh"]
    if ran and stream.isatty() and not quiet:
        from llm_build.report.table import print_steps

        print_steps(recipe, stream)
    folder = Path(recipe["output"])
    if recipe["status"] == "unsupported":
        print_unsupported(recipe, stream)
        return
    if recipe["status"] == "failed":
        bad = [s["name"] for s in recipe["steps"] if s["status"] == "failed"]
        print(f"{recipe['name']}: failed in {', '.join(bad) or 'an earlier step'}", file=stream)
        return
    facts = {k: v for s in recipe["steps"] if s["validation"] for k, v in s.get("facts", {}).items()}
    for decision in (step for step in ran if step["role"] == "decision"):
        _print_rules(decision["facts"], stream)
    nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    said = _what_was_done(len(ran), len(recipe["steps"]), seconds)
    line = f"{recipe['name']}: {said} {relative(folder)}, {format_bytes(nbytes)}{_quality(facts)}"
    print(wrap_text(line, stream), file=stream)


def _what_was_done(ran: int, steps: int, seconds: float) -> str:
    """ "built in 12 s into", "built in 3.1 s (2 of 9 steps ran) into", "up to date (all 9 steps fresh) in"."""
    if not ran:
        return f"up to date (all {count_of(steps, 'step')} fresh) in"
    part = f" ({ran} of {count_of(steps, 'step')} ran)" if ran < steps else ""
    return f"built in {format_seconds(seconds)}{part} into"


def _quality(facts: dict[str, Any]) -> str:
    """What verify measured, "" where it did not run."""
    if not facts:
        return ""
    original, kl, own = (float(facts[name]) for name in ("perplexity_original", "kl", "perplexity"))  # or "inf"
    whose = f"not run here ({facts['not_run']}); its weights: " if "not_run" in facts else ""
    return f"; {whose}KL {kl:.4f}{_top1(facts)}, perplexity {own:.2f} (original {original:.2f})"


def _top1(facts: dict[str, Any]) -> str:
    return f", top-1 {float(facts['top1']):.1%}" if "top1" in facts else ""


def _print_rules(facts: dict[str, Any], stream: TextIO) -> None:
    """What a budget picked, as a recipe would write it."""
    each = ", ".join(f"{pattern} {bits:.2f}" for pattern, bits in facts["bits_of"].items())
    print(f"bits per weight: {facts['bits_per_weight']:.2f} in all; {each}", file=stream)
    print("rules:", file=stream)
    for rule in facts["rules"]:
        print("  - " + json.dumps(rule).replace('"', ""), file=stream)


def print_unsupported(recipe: dict[str, Any], stream: TextIO) -> None:
    print(wrap_text(f"{recipe['name']}: unsupported: {recipe['reason']}", stream), file=stream)
    if recipe["hint"]:
        print(f"  next: {recipe['hint']}", file=stream)


def relative(folder: Path) -> str:
    here = Path.cwd()
    return f"{folder.relative_to(here)}/" if folder.is_relative_to(here) else f"{folder}/"
