"""What differs between two locks: choices, checkpoint, settings, tools, code, steps, bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from llm_build.core.reason import Difference
from llm_build.core.units import format_bytes
from llm_build.provenance.lock_file import Cell, Facts, Lock, Names

_SHORT = 19  # characters of a digest that are shown: "blake3:" and twelve digits
_NAMED = 3  # cells
_MADE_OF_MODEL = ("architecture", "metadata")  # sections of the settings whose keys a recipe has under model
Modules = Callable[[str], "Names | None"]  # code fingerprint -> {module file: digest}, where that is known


class LockDifference(NamedTuple):
    """One difference, and the cells that have it; none: all there are."""

    cells: tuple[str, ...]
    difference: Difference


def differences_between(last: Lock, now: Lock, modules: Modules, common: bool = False) -> list[LockDifference]:
    """Everything that differs, the same difference of several cells once. A section that one side does not know is not
    compared. ``common``: cells and tools that only one side has are no difference either."""
    cells_with: dict[Difference, list[str]] = {}
    for name, each in _differences_of_cells(last, now, modules, common):
        for difference in each:
            cells_with.setdefault(difference, []).append(name)
    some = common or not all(cell.artifact for lock in (last, now) for cell in lock.cells.values())
    tools = _facts_that_differ("tools", last.tools, now.tools)
    return [
        *(LockDifference((), d) for d in tools if not some or (d.last and d.now)),
        *(LockDifference(_cells_to_name(d, names, now), d) for d, names in cells_with.items()),
    ]


def _cells_to_name(difference: Difference, names: list[str], now: Lock) -> tuple[str, ...]:
    """The cells to name: none where there is one, or all have it, or it is a cell itself."""
    return () if difference.what == "cells" or len(names) == len(now.cells) else tuple(names)


def _differences_of_cells(
    last: Lock, now: Lock, modules: Modules, common: bool
) -> Iterator[tuple[str, list[Difference]]]:
    """(name, differences) of every cell."""
    for old, name in pairs_of(last, now):
        renamed = [Difference("name", old, name, f"name {old} → {name}")] if old != name else []
        yield name, renamed + _differences_of_cell(last.cells[old], now.cells[name], modules)
    if not common and len(last.cells) + len(now.cells) != 2:
        for name in sorted(last.cells.keys() ^ now.cells.keys()):
            yield name, [_only_on_one_side(name, name in now.cells)]


def pairs_of(last: Lock, now: Lock) -> list[tuple[str, str]]:
    """Names of the cells to compare: those of one name; the only one of one side with the only one of the other."""
    if len(last.cells) == len(now.cells) == 1:
        return list(zip(last.cells, now.cells, strict=True))
    return [(name, name) for name in sorted(last.cells.keys() & now.cells.keys())]


def _only_on_one_side(name: str, is_new: bool) -> Difference:
    return Difference(
        "cells", "" if is_new else name, name if is_new else "", f"{name} {'added' if is_new else 'removed'}"
    )


def _differences_of_cell(last: Cell, now: Cell, modules: Modules) -> list[Difference]:
    """``steps`` are listed only where nothing else says why a key differs. What follows from the rules of a budget is
    not compared while one side has not picked them: it has no artifact then."""
    if not (last.artifact and now.artifact):
        last, now = (replace(cell, settings=_without_rules(cell.settings), inputs={}) for cell in (last, now))
    why = [
        *_facts_that_differ("", last.choices, now.choices),
        *_checkpoint_differences(last.checkpoint, now.checkpoint),
        *_setting_differences(last.settings, now.settings),
        *_facts_that_differ("", last.inputs, now.inputs),
        *_code_differences(last.code, now.code, modules),
    ]
    return [*why, *([] if why else _step_differences(last.steps, now.steps)), *_output_differences(last, now)]


def _facts_that_differ(section: str, last: Facts, now: Facts) -> Iterator[Difference]:
    """Facts by name; nothing when one side is not known."""
    if not last or not now:
        return
    for name in sorted(last.keys() | now.keys()):
        old, new = last.get(name), now.get(name)
        what = f"{section}.{name}" if section else name
        if old != new:
            yield Difference(what, _shorten(old), _shorten(new), f"{name} {_format_change(old, new)}")


def _setting_differences(last: Facts, now: Facts) -> Iterator[Difference]:
    """Settings by the key that a user types. One that was asked for is not repeated where what was made of it differs:
    both have the key of the recipe."""
    differing = {each.what: each for each in _facts_that_differ("", last, now)}
    for what, difference in differing.items():
        section, dot, name = what.partition(".")
        if section == "model" and any(f"{made}.{name}" in differing for made in _MADE_OF_MODEL):
            continue
        key = f"model{dot}{name}" if section in _MADE_OF_MODEL else what
        yield difference._replace(what=key, text=key + difference.text.removeprefix(what))


def _without_rules(settings: Facts) -> Facts:
    return {key: value for key, value in settings.items() if not key.startswith("quant.rules.")}


def _format_change(old: object, new: object) -> str:
    """Lists, which a lock writes as one fact, by what came and went."""
    if old is None or new is None:
        return f"added ({_shorten(new)})" if old is None else f"removed (was {_shorten(old)})"
    if isinstance(old, str) and isinstance(new, str) and (", " in old or ", " in new):
        olds, news = old.split(", "), new.split(", ")
        if gone_and_new := [f"-{each}" for each in olds if each not in news] + [f"+{e}" for e in news if e not in olds]:
            return " ".join(gone_and_new)
    return f"{_shorten(old)} → {_shorten(new)}"


def _shorten(value: object) -> str:
    text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text[:_SHORT] + "…" if text.startswith(("blake3:", "sha256:", "sha512-")) else text


def _checkpoint_differences(last: Names, now: Names) -> Iterator[Difference]:
    """The content is what counts: a folder may stand for a revision, if it has the same bytes. Before it is read, a
    revision can be told from another."""
    if not last or not now:
        return
    if "asked" in last and "asked" in now and now["asked"] not in (last["asked"], last["source"]):
        yield from _in_section("checkpoint", {"asked": last["asked"]}, {"asked": now["asked"]})
    sources = {"source": last["source"]}, {"source": now["source"]}
    if "digest" in last and "digest" in now:
        olds, news = ({k: v for k, v in side.items() if k not in ("asked", "source")} for side in (last, now))
        if olds != news:
            yield from _in_section("checkpoint", olds, news)
            yield from _in_section("checkpoint", *sources)
    elif all("@" in side["source"] for side in sources):
        yield from _in_section("checkpoint", *sources)


def _in_section(section: str, last: Facts, now: Facts) -> Iterator[Difference]:
    """As named, with the section in the text."""
    return (d._replace(text=f"{section} {d.text}") for d in _facts_that_differ(section, last, now))


def _code_differences(last: Names, now: Names, modules: Modules) -> Iterator[Difference]:
    """By module where it is known which, each with the steps that reach it."""
    by_module: dict[tuple[str, str], list[str]] = {}
    for step in sorted(last.keys() & now.keys()):
        if last[step] == now[step]:
            continue
        old, new = modules(last[step]), modules(now[step])
        if old is None or new is None:
            yield Difference(f"code.{step}", _shorten(last[step]), _shorten(now[step]), f"code of {step} changed")
            continue
        for file in sorted(old.keys() | new.keys()):
            if old.get(file) != new.get(file):
                verb = "added" if file not in old else "removed" if file not in new else "changed"
                by_module.setdefault((file, verb), []).append(step)
    for (file, verb), readers in by_module.items():
        yield Difference(f"code.{file}", "", "", f"{file} {verb} (code of {', '.join(readers)})")


def _step_differences(last: Names, now: Names) -> Iterator[Difference]:
    for step in sorted(last.keys() & now.keys()):
        if last[step] != now[step]:
            yield Difference(f"steps.{step}", last[step], now[step], f"{step} is made from other inputs")


def _output_differences(last: Cell, now: Cell) -> Iterator[Difference]:
    for difference in _facts_that_differ("outputs", last.outputs, now.outputs):
        name = difference.what.removeprefix("outputs.")
        old, new = last.nbytes.get(name, 0), now.nbytes.get(name, 0)
        sizes = f", {format_bytes(old)} → {format_bytes(new)}" if old and new and old != new else ""
        yield difference._replace(text=difference.text + sizes)


def format_lock_difference(each: LockDifference) -> str:
    if not each.cells:
        return each.difference.text
    more = f" and {len(each.cells) - _NAMED} more" if len(each.cells) > _NAMED else ""
    return f"{', '.join(each.cells[:_NAMED])}{more}: {each.difference.text}"
