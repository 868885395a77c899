"""The rooms of builder/: what each is, and which others it may import. The one place that says so.

    python -m tools.rooms [README]

writes the picture between the marks of the README. tests/planning/test_arrows.py holds the code and the README to the
table.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

START, END = "<!-- rooms -->", "<!-- /rooms -->"
WIDTH = 96  # columns of the picture, with its indent
INDENT, NAME = "    ", 15


class Room(NamedTuple):
    """A folder of builder/: one line on what it is, and the rooms that it may import."""

    purpose: str
    imports: tuple[str, ...]


ROOMS: Mapping[str, Room] = {  # a room imports only rooms below it; "" is builder/__main__.py
    "": Room("the door: __main__.py", ("cli", "report", "core")),
    "cli": Room(
        "what is typed and what is printed, one file per verb",
        ("app", "planner", "provenance", "config", "report", "core"),
    ),
    "app": Room(
        "what a verb does, callable from Python",
        ("planner", "provenance", "config", "report", "executors", "remote", "runtime", "targets", "core"),
    ),
    "planner": Room(
        "recipes -> Plan: can it work, does it fit, which steps",
        ("config", "lowering", "verification", "quant", "architectures", "formats", "targets", "core"),
    ),
    "provenance": Room("lock files, the statement, signatures, diff", ("config", "formats", "core")),
    "config": Room("Hydra and only here; choices -> frozen Recipe", ("core",)),
    "report": Room("documents, tables and progress for people", ("core",)),
    "steps": Room(
        "what runs: fetch, convert, quantize, lower, verify, ...",
        (
            "models",
            "lowering",
            "ops",
            "verification",
            "runtime",
            "quant",
            "architectures",
            "formats",
            "targets",
            "core",
        ),
    ),
    "models": Room("a family's graph, read from top to bottom", ("ops", "quant", "architectures", "core")),
    "lowering": Room("named passes and the kernels", ("ops", "quant", "formats", "targets", "core")),
    "ops": Room("what models and lowering both stand on", ("quant", "architectures", "core")),
    "verification": Room(
        "what verify measures, and its limits", ("runtime", "quant", "architectures", "formats", "core")
    ),
    "runtime": Room("loads an artifact and generates with it", ("formats", "targets", "core")),
    "quant": Room("schemes, packing, methods: numpy alone", ("formats", "architectures", "core")),
    "architectures": Room("a family's config.json and table of parameters", ("core",)),
    "formats": Room("byte contracts, in and out", ("core",)),
    "targets": Room("what a platform can do, how its library is linked", ("core",)),
    "executors": Room("worker processes; tasks on a Ray cluster", ("remote", "core")),
    "remote": Room("a store that is shared, through fsspec", ("core",)),
    "core": Room("step, plan, store, run: knows no language model", ()),
}
DATA = {"demo": "a small model, its texts and their license", "web_page": "the page of package=web_page"}  # no code


def direct_imports(room: str) -> tuple[str, ...]:
    """The imports of a room that no other import of it may have too: what the picture draws."""
    imports = ROOMS[room].imports
    below = {name for other in imports for name in ROOMS[other].imports}
    return tuple(name for name in imports if name not in below)


def picture() -> str:
    """The rooms from top to bottom, an arrow to the nearest that each may import."""
    lines = [f"{INDENT}builder/"]
    for name, room in ROOMS.items():
        if not name:
            continue
        nearest = direct_imports(name)
        arrow = f"  → {', '.join(nearest)}" if nearest else ""
        lines += textwrap.wrap(
            f"{name + '/':<{NAME}} {room.purpose}{arrow}", WIDTH, initial_indent=f"{INDENT}  ",
            subsequent_indent=f"{INDENT}  {' ' * NAME} ", drop_whitespace=True, replace_whitespace=False,
        )  # fmt: skip
    lines += [f"{INDENT}  {name + '/':<{NAME}} {purpose}" for name, purpose in DATA.items()]
    return "\n".join(lines) + "\n"


def with_picture(text: str) -> str:
    """The README with the picture between its marks. Raises ValueError where it has none."""
    before, after = text.index(START) + len(START), text.index(END)
    return f"{text[:before]}\n\n{picture()}\n{text[after:]}"


def main(words: list[str]) -> None:
    path = Path(words[0] if words else "README.md")
    path.write_text(with_picture(path.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
