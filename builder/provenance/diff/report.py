"""The whole comparison of two sides, as a document and as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from builder.app.sides import Loaded, modules_of
from builder.core.reason import Difference
from builder.core.store import Store
from builder.core.units import format_bytes
from builder.provenance.diff import folders
from builder.provenance.diff.locks import Moved, line, moved, pairs_of
from builder.provenance.diff.steps import bench_of, reruns
from builder.provenance.lock_file import Cell

SHOWN = 20  # lines of one kind
KINDS = {  # heading: what its differences start with
    "tools": ("tools.",),
    "checkpoint": ("checkpoint.",),
    "code": ("code.",),
    "files": ("outputs.",),
}
Json = dict[str, Any]


def compare(last: Loaded, now: Loaded, store: Store) -> Json:
    """{"same", "a", "b", "differences", "cells": {name: {"steps", "tensors", "bytes", "quality", "bench"}}}. Sections
    of a cell are left out where they are equal, or one side does not know them. Cells are those of both sides."""
    mixed = "folder" in (last.kind, now.kind)
    found = moved(last.lock, now.lock, modules_of(last, now), common=mixed)
    cells = {}
    for was, name in pairs_of(last.lock, now.lock):
        old, new = last.lock.cells[was], now.lock.cells[name]
        steps = [each._asdict() for each in reruns(old, new, store)]
        cells[name] = {
            **({"steps": steps} if steps else {}),
            **tensors_between(last, now, old, new),
            **figures("bytes", {"all": sum(old.nbytes.values())}, {"all": sum(new.nbytes.values())}),
            **figures("quality", old.quality, new.quality),
            **figures("bench", rates(was, old, store), rates(name, new, store)),
        }
    rows = [{"cells": list(each.cells), **each.difference._asdict()} for each in found]
    sides = {"a": {"name": last.name, "kind": last.kind}, "b": {"name": now.name, "kind": now.kind}}
    same = not rows and not any("steps" in cell or "tensors" in cell for cell in cells.values())
    return {"same": same, **sides, "differences": rows, "cells": {k: v for k, v in cells.items() if v}}


def tensors_between(last: Loaded, now: Loaded, old: Cell, new: Cell) -> Json:
    """Where the files of both sides are at hand and their indexes or shards differ."""
    if not last.folder or not now.folder or old.outputs == new.outputs:
        return {}
    equal = {name: old.outputs.get(name) == digest for name, digest in new.outputs.items()}
    found = folders.compare(last.folder, now.folder, equal)
    differ = found.added or found.removed or found.reshaped or found.changed
    return {"tensors": found._asdict()} if differ else {}


def figures(name: str, last: Mapping[str, Any], now: Mapping[str, Any]) -> Json:
    """{name: {figure: [last, now]}} of the figures that both know and that differ."""
    both = {key: [last[key], now[key]] for key in last if last[key] and now.get(key) and last[key] != now[key]}
    return {name: both} if both else {}


def rates(name: str, cell: Cell, store: Store) -> dict[str, float]:
    """Tokens/s by what was measured."""
    found = bench_of(name, cell, store)
    if found is None:
        return {}
    decode = {f"decode at {row['context']}": row["tokens_per_s"]["median"] for row in found["decode"]}
    return {f"prefill {found['prefill']['tokens']}": found["prefill"]["tokens_per_s"]["median"], **decode}


def lines(whole: Json) -> Iterator[str]:
    """The document as text."""
    a, b = whole["a"], whole["b"]
    yield f"{a['name']} ({a['kind']}) → {b['name']} ({b['kind']})" + (": no difference" if whole["same"] else "")
    by_heading: dict[str, list[str]] = {}
    for row in whole["differences"]:
        difference = Difference(row["what"], row["last"], row["now"], row["text"])
        by_heading.setdefault(heading(row), []).append(line(Moved(tuple(row["cells"]), difference)))
    for title, texts in by_heading.items():
        yield from section(title, texts)
    for name, cell in whole["cells"].items():
        suffix = f" of {name}" if len(whole["cells"]) > 1 else ""
        for title, texts in cell_sections(cell).items():
            yield from section(title + suffix, texts)


def heading(row: Mapping[str, Any]) -> str:
    return next((title for title, starts in KINDS.items() if row["what"].startswith(starts)), "recipe")


def section(title: str, texts: list[str]) -> Iterator[str]:
    yield title
    yield from (f"  {text}" for text in texts[:SHOWN])
    if len(texts) > SHOWN:
        yield f"  and {len(texts) - SHOWN} more (--json shows all)"


def cell_sections(cell: Json) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    if "steps" in cell:
        found["steps"] = [f"{row['step']}: {row['why'] or keys(row)}" for row in cell["steps"]]
    if "tensors" in cell:
        found["tensors"] = tensor_lines(cell["tensors"])
    if "bytes" in cell:
        last, now = cell["bytes"]["all"]
        found["size"] = [f"{format_bytes(last)} → {format_bytes(now)} ({now / last - 1:+.1%})"]
    if "quality" in cell:
        found["quality"] = [f"{name} {last:g} → {now:g}" for name, (last, now) in cell["quality"].items()]
    if "bench" in cell:
        pairs = cell["bench"].items()
        found["tokens/s"] = [f"{name}: {last:,.0f} → {now:,.0f} ({now / last - 1:+.0%})" for name, (last, now) in pairs]
    return found


def keys(row: Mapping[str, str]) -> str:
    last, now = (row[side].removeprefix("sha256:")[:12] for side in ("last", "now"))
    return f"key {last} → {now}"


def tensor_lines(found: Json) -> list[str]:
    told = [f"{name} {kind} added" for name, kind in found["added"].items()]
    told += [f"{name} {kind} removed" for name, kind in found["removed"].items()]
    told += [f"{name} {last} → {now}" for name, (last, now) in found["reshaped"].items()]
    if found["changed"]:
        told.append(f"{len(found['changed'])} of {len(found['changed']) + found['same']} with other bytes, in "
                    f"{', '.join(found['shards'][:4])}{', ...' if len(found['shards']) > 4 else ''}:")  # fmt: skip
        told += [f"  {name}" for name in found["changed"]]
    return told
