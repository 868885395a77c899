"""What differs between two locks: choices, checkpoint, settings, tools, code, steps, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from builder.core.reason import Difference
from builder.core.units import format_bytes
from builder.provenance.lock_file import Cell, Facts, Lock, Names

SHORT = 19  # characters of a digest that are shown: "blake3:" and twelve digits
NAMED = 3  # cells
Modules = Callable[[str], "Names | None"]  # code fingerprint -> {module file: digest}, where that is known


class Moved(NamedTuple):
    """One difference, and the cells that have it; none: all there are."""

    cells: tuple[str, ...]
    difference: Difference


def moved(last: Lock, now: Lock, modules: Modules, common: bool = False) -> list[Moved]:
    """Everything that differs, the same difference of several cells once. A section that one side does not know is not
    compared. ``common``: cells and tools that only one side has are no difference either."""
    found: dict[Difference, list[str]] = {}
    for name, each in cells_of(last, now, modules, common):
        for difference in each:
            found.setdefault(difference, []).append(name)
    some = common or not all(cell.artifact for lock in (last, now) for cell in lock.cells.values())
    whole = [Moved((), d) for d in named("tools", last.tools, now.tools) if not some or (d.last and d.now)]
    return whole + [Moved(() if d.what == "cells" else whose(names, now), d) for d, names in found.items()]


def whose(names: list[str], now: Lock) -> tuple[str, ...]:
    """The cells to name: none where there is one, or all have it."""
    return () if len(names) == len(now.cells) else tuple(names)


def cells_of(last: Lock, now: Lock, modules: Modules, common: bool) -> Iterator[tuple[str, list[Difference]]]:
    """(name, differences) of every cell."""
    for old, name in pairs_of(last, now):
        renamed = [Difference("name", old, name, f"name {old} → {name}")] if old != name else []
        yield name, renamed + cell_differences(last.cells[old], now.cells[name], modules)
    if not common and len(last.cells) + len(now.cells) != 2:
        for name in sorted(last.cells.keys() ^ now.cells.keys()):
            yield name, [only_one(name, name in now.cells)]


def pairs_of(last: Lock, now: Lock) -> list[tuple[str, str]]:
    """Names of the cells to compare: those of one name; the only one of one side with the only one of the other."""
    if len(last.cells) == len(now.cells) == 1:
        return list(zip(last.cells, now.cells, strict=True))
    return [(name, name) for name in sorted(last.cells.keys() & now.cells.keys())]


def only_one(name: str, is_new: bool) -> Difference:
    return Difference(
        "cells", "" if is_new else name, name if is_new else "", f"{name} {'added' if is_new else 'removed'}"
    )


def cell_differences(last: Cell, now: Cell, modules: Modules) -> list[Difference]:
    """``steps`` are told only where nothing else says why a key differs. What follows from the rules of a budget is not
    compared while one side has not picked them: it has no artifact then."""
    if not (last.artifact and now.artifact):
        last, now = (replace(cell, settings=without_rules(cell.settings), inputs={}) for cell in (last, now))
    why = [
        *named("", last.choices, now.choices),
        *checkpoint(last.checkpoint, now.checkpoint),
        *named("", last.settings, now.settings),
        *named("", last.inputs, now.inputs),
        *code(last.code, now.code, modules),
    ]
    return [*why, *([] if why else steps(last.steps, now.steps)), *outputs(last, now)]


def named(section: str, last: Facts, now: Facts) -> Iterator[Difference]:
    """Facts by name; nothing when one side is not known."""
    if not last or not now:
        return
    for name in sorted(last.keys() | now.keys()):
        old, new = last.get(name), now.get(name)
        what = f"{section}.{name}" if section else name
        if old != new:
            yield Difference(what, shown(old), shown(new), f"{name} {change(old, new)}")


def without_rules(settings: Facts) -> Facts:
    return {key: value for key, value in settings.items() if not key.startswith("quant.rules.")}


def change(old: object, new: object) -> str:
    """Lists, which a lock writes as one fact, by what came and went."""
    if old is None or new is None:
        return f"added ({shown(new)})" if old is None else f"removed (was {shown(old)})"
    if isinstance(old, str) and isinstance(new, str) and (", " in old or ", " in new):
        olds, news = old.split(", "), new.split(", ")
        if gone_and_new := [f"-{each}" for each in olds if each not in news] + [f"+{e}" for e in news if e not in olds]:
            return " ".join(gone_and_new)
    return f"{shown(old)} → {shown(new)}"


def shown(value: object) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text[:SHORT] + "…" if text.startswith(("blake3:", "sha256:", "sha512-")) else text


def checkpoint(last: Names, now: Names) -> Iterator[Difference]:
    """The content is what counts: a folder may stand for a revision, if it has the same bytes. Before it is read, a
    revision can be told from another."""
    if not last or not now:
        return
    if "asked" in last and "asked" in now and now["asked"] not in (last["asked"], last["source"]):
        yield from told("checkpoint", {"asked": last["asked"]}, {"asked": now["asked"]})
    sources = {"source": last["source"]}, {"source": now["source"]}
    if "digest" in last and "digest" in now:
        olds, news = ({k: v for k, v in side.items() if k not in ("asked", "source")} for side in (last, now))
        if olds != news:
            yield from told("checkpoint", olds, news)
            yield from told("checkpoint", *sources)
    elif all("@" in side["source"] for side in sources):
        yield from told("checkpoint", *sources)


def told(section: str, last: Facts, now: Facts) -> Iterator[Difference]:
    """As named, with the section in the text."""
    return (d._replace(text=f"{section} {d.text}") for d in named(section, last, now))


def code(last: Names, now: Names, modules: Modules) -> Iterator[Difference]:
    """By module where it is known which, each with the steps that reach it."""
    by_module: dict[tuple[str, str], list[str]] = {}
    for step in sorted(last.keys() & now.keys()):
        if last[step] == now[step]:
            continue
        old, new = modules(last[step]), modules(now[step])
        if old is None or new is None:
            yield Difference(f"code.{step}", shown(last[step]), shown(now[step]), f"code of {step} changed")
            continue
        for file in sorted(old.keys() | new.keys()):
            if old.get(file) != new.get(file):
                verb = "added" if file not in old else "removed" if file not in new else "changed"
                by_module.setdefault((file, verb), []).append(step)
    for (file, verb), readers in by_module.items():
        yield Difference(f"code.{file}", "", "", f"{file} {verb} (code of {', '.join(readers)})")


def steps(last: Names, now: Names) -> Iterator[Difference]:
    for step in sorted(last.keys() & now.keys()):
        if last[step] != now[step]:
            yield Difference(f"steps.{step}", last[step], now[step], f"{step} is made from other inputs")


def outputs(last: Cell, now: Cell) -> Iterator[Difference]:
    for difference in named("outputs", last.outputs, now.outputs):
        name = difference.what.removeprefix("outputs.")
        old, new = last.nbytes.get(name, 0), now.nbytes.get(name, 0)
        sizes = f", {format_bytes(old)} → {format_bytes(new)}" if old and new and old != new else ""
        yield difference._replace(text=difference.text + sizes)


def line(found: Moved) -> str:
    if not found.cells:
        return found.difference.text
    more = f" and {len(found.cells) - NAMED} more" if len(found.cells) > NAMED else ""
    return f"{', '.join(found.cells[:NAMED])}{more}: {found.difference.text}"
