"""The table after a build or a plan: every step, its status and the reason, parts of a fan-out folded into a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from llm_build.core.units import format_bytes
from llm_build.report.text import format_seconds, template_name

_COLOURS = {
    "fresh": "dim",
    "ran": "green",
    "failed": "bold red",
    "skipped": "yellow",
    "stale": "yellow",
    "blocked": "dim",
}

_UNTIMED = ("skipped", "failed")  # how long a step ran before it failed is not kept


def fold(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Neighbouring parts of one fan-out with the same status and reason as one row ("quantize[0-11]")."""
    rows: list[dict[str, Any]] = []
    for step in steps:
        same = rows and "[" in step["name"] and template_name(rows[-1]["name"]) == template_name(step["name"])
        if same and (rows[-1]["status"], rows[-1]["reason"]) == (step["status"], step["reason"]):
            row = rows[-1]
            row["last"] = step["name"].partition("[")[2].rstrip("]")
            row["seconds"] = (row["seconds"] or 0) + (step["seconds"] or 0)
            row["bytes"] = (row["bytes"] or 0) + (step["bytes"] or 0)
        else:
            rows.append(dict(step))
    for row in rows:
        if "last" in row:
            row["name"] = f"{row['name'].rstrip(']')}-{row['last']}]"
    return rows


def print_steps(recipe: Mapping[str, Any], stream: TextIO) -> None:
    """One recipe's steps; ``recipe`` is an entry of the --json document."""
    from rich.table import Table

    from llm_build.report.console import Console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (
        ("step", "left"),
        ("status", "left"),
        ("time", "right"),
        ("size", "right"),
        ("why", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for row in fold(recipe["steps"]):
        colour = _COLOURS[row["status"]]
        time = format_seconds(row["seconds"]) if row["seconds"] is not None and row["status"] not in _UNTIMED else ""
        nbytes = format_bytes(row["bytes"]) if row["bytes"] else ""
        table.add_row(row["name"], f"[{colour}]{row['status']}[/]", time, nbytes, escape(row["reason"] or ""))
    Console(file=stream, highlight=False).print(table)


def escape(text: str) -> str:
    return text.replace("[", "\\[")
