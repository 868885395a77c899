"""A plan as text, as Mermaid (https://mermaid.js.org/syntax/flowchart.html) and as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from llm_build.core.plan import Plan

_BOX_W, _BOX_H, _GAP_X, _GAP_Y, _MARGIN = 170, 40, 70, 18, 20
_FILL = {"fresh": "#dff5e1", "stale": "#fff0cc", "blocked": "#eef0f4", "": "#ffffff"}


def _edges(plan: Plan) -> dict[str, list[str]]:
    """For every step the steps it reads from, in plan order."""
    order = {step: i for i, step in enumerate(plan.steps)}
    return {
        id_: sorted({i.step for i in step.inputs.values()}, key=order.__getitem__) for id_, step in plan.steps.items()
    }


def labels(plan: Plan) -> dict[str, str]:
    """A name for each step; fan-out templates end in [*], equal names of a sweep get their id."""
    names = {id_: step.name + ("[*]" if step.expand else "") for id_, step in plan.steps.items()}
    count = list(names.values())
    return {id_: n if count.count(n) == 1 else f"{n} {id_.rpartition('-')[2][:6]}" for id_, n in names.items()}


def depths(plan: Plan) -> dict[str, int]:
    """The longest way from a step without inputs."""
    reads, depths = _edges(plan), dict[str, int]()

    def depth(id_: str) -> int:
        if id_ not in depths:
            depths[id_] = 1 + max((depth(r) for r in reads[id_]), default=-1)
        return depths[id_]

    for id_ in plan.steps:
        depth(id_)
    return depths


def text(plan: Plan, status: Mapping[str, str]) -> str:
    """One line a step: what it is, what it reads."""
    names, reads = labels(plan), _edges(plan)
    width = max(len(n) for n in names.values())
    lines = []
    for id_, name in names.items():
        sources = ", ".join(names[r] for r in reads[id_])
        lines.append(f"{name:<{width}}  {status.get(id_, ''):<7}  {'← ' + sources if sources else ''}".rstrip())
    return "\n".join(lines)


def mermaid(plan: Plan, status: Mapping[str, str]) -> str:
    names, reads = labels(plan), _edges(plan)
    index = {id_: f"s{i}" for i, id_ in enumerate(plan.steps)}
    lines = ["flowchart LR"]
    for id_, name in names.items():
        lines.append(f'  {index[id_]}["{name}"]')
        if status.get(id_):
            lines.append(f"  class {index[id_]} {status[id_]}")
        lines += [f"  {index[r]} --> {index[id_]}" for r in reads[id_]]
    lines += [f"  classDef {name} fill:{colour}" for name, colour in _FILL.items() if name]
    return "\n".join(lines) + "\n"


def svg(plan: Plan, status: Mapping[str, str]) -> str:
    """Columns by depth, an arrow for each input."""
    names, reads, level = labels(plan), _edges(plan), depths(plan)
    columns: dict[int, list[str]] = {}
    for id_ in plan.steps:
        columns.setdefault(level[id_], []).append(id_)
    place = {
        id_: (_MARGIN + column * (_BOX_W + _GAP_X), _MARGIN + row * (_BOX_H + _GAP_Y))
        for column, ids in columns.items()
        for row, id_ in enumerate(ids)
    }
    width = _MARGIN * 2 + len(columns) * (_BOX_W + _GAP_X) - _GAP_X
    height = _MARGIN * 2 + max(map(len, columns.values())) * (_BOX_H + _GAP_Y) - _GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        '<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    parts += [_arrow(place[r], place[id_]) for id_ in plan.steps for r in reads[id_]]
    for id_, (x, y) in place.items():
        fill = _FILL[status.get(id_, "")]
        parts.append(f'<rect x="{x}" y="{y}" width="{_BOX_W}" height="{_BOX_H}" rx="6" fill="{fill}" stroke="#445"/>')
        parts.append(
            f'<text x="{x + _BOX_W // 2}" y="{y + _BOX_H // 2 + 5}" text-anchor="middle">{escape(names[id_])}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + _BOX_W, start[1] + _BOX_H // 2, end[0], end[1] + _BOX_H // 2
    bend = (x1 + x2) // 2
    return f'<path d="M{x1} {y1}C{bend} {y1} {bend} {y2} {x2} {y2}" fill="none" stroke="#667" marker-end="url(#a)"/>'
