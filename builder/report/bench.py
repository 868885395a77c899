"""Measurements as a table: one row per artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from llm_build.core.units import count_of, format_bytes
from llm_build.report.text import format_seconds, wrap_text


def print_bench(recipes: Sequence[Mapping[str, Any]], stream: TextIO) -> None:
    """``recipes``: entries of the --json document that have a "bench"."""
    if not recipes:
        return
    from rich.table import Table

    from llm_build.report.console import Console

    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = _columns_of(recipes)
    table.add_column("tokens/s", no_wrap=True, min_width=max(len(recipe["name"]) for recipe in recipes))
    for column in columns:
        table.add_column(column, justify="right")
    for recipe in recipes:
        cells = _cells_of(recipe["bench"])
        table.add_row(recipe["name"], *(cells.get(column, "") for column in columns))
    Console(file=stream, highlight=False, width=None if stream.isatty() else 200).print(table)
    for line in notes(recipes):
        print(wrap_text(line, stream), file=stream)


def _columns_of(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of all rows, in the order that they are shown."""
    return list(dict.fromkeys(column for recipe in recipes for column in _cells_of(recipe["bench"])))


def _cells_of(bench: Mapping[str, Any]) -> dict[str, str]:
    """One row by column; ± is half the way from the slowest run to the fastest. The limit is what memory allows where
    the context is shortest."""
    prefill, first, memory = bench["prefill"], bench["first_token"], bench["memory"]
    cells = {f"prefill {prefill['tokens']}": spread(prefill["tokens_per_s"])}
    last = max((row["context"] for row in bench["decode"]), default=0)
    for row in bench["decode"]:
        end = row["context"] == last and len(bench["decode"]) > 2
        cells["near the end" if end else f"decode at {row['context']}"] = spread(row["tokens_per_s"])
    if bench["decode"]:
        first_row = bench["decode"][0]
        share = first_row["share_of_limit"]
        cells["of the limit"] = f"{share:.{0 if share >= 0.1 else 1}%} of {first_row['limit']:,.0f}"
    cells["first token"] = format_seconds(first["warm_s"])
    cells["load"] = format_seconds(bench["load_s"])
    of_ranks = sum(each["peak_rss_bytes"] or 0 for each in memory.get("ranks", ()))
    cells["memory"] = format_bytes(memory["device_bytes"] or of_ranks or memory["peak_rss_bytes"] or 0)
    return cells


def spread(rate: Mapping[str, Any]) -> str:
    median = rate["median"]
    number = f"{median:,.0f}" if median >= 100 else f"{median:.1f}"
    return f"{number} ±{(rate['high'] - rate['low']) / 2 / median:.0%}"


def notes(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The machine, when it was measured if not now, what disturbed it and what was left out."""
    machines = dict.fromkeys("on " + ", ".join(machine_of(recipe["bench"]["machine"])) for recipe in recipes)
    notes = [(recipe["name"], text) for recipe in recipes for text in _notes_of(recipe["bench"])]
    return [*machines, *(text if len(recipes) == 1 else f"{name}: {text}" for name, text in notes)]


def _notes_of(bench: Mapping[str, Any]) -> list[str]:
    notes = [f"kept from {bench['measured']}: --again measures anew"] if bench["kept"] else []
    if bench["load_average"] > bench["machine"]["cores"]:
        notes.append(f"other programs were running: load average {bench['load_average']:.1f}")
    return notes + [f"decode at {left['context']} left out: {left['why']}" for left in bench["left_out"]]


def machine_of(machine: Mapping[str, Any]) -> list[str]:
    """Its parts, the one that the library runs on first."""
    cores = f"{machine['cpu']}, {count_of(machine['cores'], 'core')} ({machine['instructions']})"
    return [*([machine["gpu"]] if "gpu" in machine else []), cores, f"{machine['memory_gib']} GiB", machine["system"]]
