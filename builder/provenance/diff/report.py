"""The whole comparison of two sides, as a document and as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llm_build.core.reason import Difference
from llm_build.core.store import Store
from llm_build.core.units import format_bytes
from llm_build.provenance.diff import folders
from llm_build.provenance.diff.locks import LockDifference, differences_between, format_lock_difference, pairs_of
from llm_build.provenance.diff.sides import DiffSide, modules_of
from llm_build.provenance.diff.steps import reruns
from llm_build.provenance.lock_file import Cell, Names

_SHOWN = 20  # lines of one kind
_KINDS = {  # heading: what its differences start with
    "tools": ("tools.",),
    "checkpoint": ("checkpoint.",),
    "code": ("code.",),
    "files": ("outputs.",),
}
Json = dict[str, Any]
BenchOf = Callable[[str, Cell], "Mapping[str, Any] | None"]  # what `build bench` measured of a cell, by name


def compare(last: DiffSide, now: DiffSide, store: Store, bench_of: BenchOf, recipe_keys: Names) -> Json:
    """{"same", "a", "b", "differences", "cells": {name: {"steps", "tensors", "bytes", "quality", "bench"}}}. Sections
    of a cell are left out where they are equal, or one side does not know them. Cells are those of both sides.
    ``recipe_keys``: how a user types what steps have as parameters."""
    mixed = "folder" in (last.kind, now.kind)
    differences = differences_between(last.lock, now.lock, modules_of(last, now), common=mixed)
    cells = {}
    for was, name in pairs_of(last.lock, now.lock):
        old, new = last.lock.cells[was], now.lock.cells[name]
        steps = [each._asdict() for each in reruns(old, new, store, recipe_keys)]
        cells[name] = {
            **({"steps": steps} if steps else {}),
            **_tensor_differences(last, now, old, new),
            **_differing_figures("bytes", {"all": sum(old.nbytes.values())}, {"all": sum(new.nbytes.values())}),
            **_differing_figures("quality", old.quality, new.quality),
            **_differing_figures("bench", _rates(bench_of(was, old)), _rates(bench_of(name, new))),
        }
    rows = [{"cells": list(each.cells), **each.difference._asdict()} for each in differences]
    sides = {"a": {"name": last.name, "kind": last.kind}, "b": {"name": now.name, "kind": now.kind}}
    same = not rows and not any("steps" in cell or "tensors" in cell for cell in cells.values())
    return {"same": same, **sides, "differences": rows, "cells": {k: v for k, v in cells.items() if v}}


def _tensor_differences(last: DiffSide, now: DiffSide, old: Cell, new: Cell) -> Json:
    """Where the files of both sides are at hand and their indexes or shards differ."""
    if not last.folder or not now.folder or old.outputs == new.outputs:
        return {}
    equal = {name: old.outputs.get(name) == digest for name, digest in new.outputs.items()}
    tensors = folders.compare(last.folder, now.folder, equal)
    differ = tensors.added or tensors.removed or tensors.reshaped or tensors.changed
    return {"tensors": tensors._asdict()} if differ else {}


def _differing_figures(name: str, last: Mapping[str, Any], now: Mapping[str, Any]) -> Json:
    """{name: {figure: [last, now]}} of the figures that both know and that differ."""
    both = {key: [last[key], now[key]] for key in last if last[key] and now.get(key) and last[key] != now[key]}
    return {name: both} if both else {}


def _rates(bench: Mapping[str, Any] | None) -> dict[str, float]:
    """Tokens/s by what was measured."""
    if bench is None:
        return {}
    decode = {f"decode at {row['context']}": row["tokens_per_s"]["median"] for row in bench["decode"]}
    return {f"prefill {bench['prefill']['tokens']}": bench["prefill"]["tokens_per_s"]["median"], **decode}


def format_comparison(comparison: Json) -> Iterator[str]:
    """The document as text."""
    a, b = comparison["a"], comparison["b"]
    yield f"{a['name']} ({a['kind']}) → {b['name']} ({b['kind']})" + (": no difference" if comparison["same"] else "")
    by_heading: dict[str, list[str]] = {}
    for row in comparison["differences"]:
        difference = Difference(row["what"], row["last"], row["now"], row["text"])
        by_heading.setdefault(_heading_of(row), []).append(
            format_lock_difference(LockDifference(tuple(row["cells"]), difference))
        )
    for title, texts in by_heading.items():
        yield from _section(title, texts)
    for name, cell in comparison["cells"].items():
        suffix = f" of {name}" if len(comparison["cells"]) > 1 else ""
        for title, texts in _sections_of_cell(cell).items():
            yield from _section(title + suffix, texts)


def _heading_of(row: Mapping[str, Any]) -> str:
    return next((title for title, starts in _KINDS.items() if row["what"].startswith(starts)), "recipe")


def _section(title: str, texts: list[str]) -> Iterator[str]:
    yield title
    yield from (f"  {text}" for text in texts[:_SHOWN])
    if len(texts) > _SHOWN:
        yield f"  and {len(texts) - _SHOWN} more (--json shows all)"


def _sections_of_cell(cell: Json) -> dict[str, list[str]]:
    sections: dict[str, list[str]] = {}
    if "steps" in cell:
        sections["steps"] = [f"{row['step']}: {row['why'] or _format_keys(row)}" for row in cell["steps"]]
    if "tensors" in cell:
        sections["tensors"] = _format_tensors(cell["tensors"])
    if "bytes" in cell:
        last, now = cell["bytes"]["all"]
        sections["size"] = [f"{format_bytes(last)} → {format_bytes(now)} ({now / last - 1:+.1%})"]
    if "quality" in cell:
        sections["quality"] = [f"{name} {last:g} → {now:g}" for name, (last, now) in cell["quality"].items()]
    if "bench" in cell:
        pairs = cell["bench"].items()
        sections["tokens/s"] = [
            f"{name}: {last:,.0f} → {now:,.0f} ({now / last - 1:+.0%})" for name, (last, now) in pairs
        ]
    return sections


def _format_keys(row: Mapping[str, str]) -> str:
    last, now = (row[side].removeprefix("sha256:")[:12] for side in ("last", "now"))
    return f"key {last} → {now}"


def _format_tensors(tensors: Json) -> list[str]:
    lines = [f"{name} {kind} added" for name, kind in tensors["added"].items()]
    lines += [f"{name} {kind} removed" for name, kind in tensors["removed"].items()]
    lines += [f"{name} {last} → {now}" for name, (last, now) in tensors["reshaped"].items()]
    if tensors["changed"]:
        lines.append(f"{len(tensors['changed'])} of {len(tensors['changed']) + tensors['same']} with other bytes, in "
                    f"{', '.join(tensors['shards'][:4])}{', ...' if len(tensors['shards']) > 4 else ''}:")  # fmt: skip
        lines += [f"  {name}" for name in tensors["changed"]]
    return lines
