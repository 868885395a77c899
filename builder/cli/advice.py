"""Advice about what a scheme cost, below the result of a build and in its document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from llm_build.app.advice import Advice, document_of
from llm_build.planner.schemes.less_loss import format_kl


def print_advice(advice: dict[str, list[Advice]], stream: TextIO) -> None:
    """A block for each recipe that has some; commands are printed as they are to be typed."""
    for name, ways in advice.items():
        for line in advice_lines(name, ways):
            print(line, file=stream)


def advice_lines(name: str, ways: Sequence[Advice]) -> list[str]:
    width = max(len(way.change) for way in ways)
    rows = [f"  {way.change:<{width}}  KL {_expected(way)}  {_bits(way)}" for way in ways]
    models = next((way.source for way in ways if way.source), "")
    source = f" (expected from {models})" if models else ""
    return [f"{name} lost much; less is lost with{source}:", *rows, f"  next: {ways[0].command}"]


def _expected(way: Advice) -> str:
    return format_kl(*way.kl) if way.source else f"{way.kl[0]:.4f}, measured"


def _bits(way: Advice) -> str:
    return f"{way.bits:.2f} bits per weight" if way.more else "the same bytes"


def add_to_document(rows: dict[str, Any], advice: dict[str, list[Advice]]) -> None:
    """The key "advice" of the recipes that have some."""
    for recipe in rows["recipes"]:
        if recipe["name"] in advice:
            recipe["advice"] = document_of(advice[recipe["name"]])
