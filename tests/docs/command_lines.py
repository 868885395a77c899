"""The command lines of the README and the docs, read as a shell reads them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

PRINT = 'build() { for word in "$@"; do printf "%s\\0" "$word"; done; printf "\\1"; }\n'
PROMPT = "$ "


class CommandLine(NamedTuple):
    line: str  # as the page has it, its continuations joined
    shown: str  # what the page shows below it


def blocks(page: Path) -> Iterator[list[str]]:
    """The lines of each block of code: in a fence, or indented by four spaces after an empty line."""
    block: list[str] = []
    fenced, empty, indent = False, True, 0
    for line in [*page.read_text("utf-8").splitlines(), "end"]:
        if line.lstrip().startswith("```"):
            fenced, indent = not fenced, len(line) - len(line.lstrip())
        elif fenced:
            block.append(line[indent:])
            continue
        elif line.startswith("    ") and (block or empty):
            block.append(line[4:])
            continue
        elif not line and block:
            block.append("")
            continue
        empty = not line
        if block:
            yield block
        block = []


def command_lines(page: Path) -> Iterator[CommandLine]:
    """Each line of a block of code that begins with `build` or `$ build`, and what follows until the next."""
    for block in blocks(page):
        lines = re.sub(r"\\\n\s*", "", "\n".join(block)).splitlines()
        starts = [at for at, line in enumerate(lines) if re.match(r"(\$ )?build( |$)", line)]
        for start, end in pairwise([*starts, len(lines)]):
            command = lines[start].removeprefix(PROMPT)
            if "[command]" not in command:
                yield CommandLine(command, "\n".join(lines[start + 1 : end]))


def words_of(line: str) -> tuple[str, ...]:
    """What `build` gets of it when bash reads it; a line that bash cannot read fails."""
    done = subprocess.run(
        ["bash", "-c", PRINT + line], capture_output=True, text=True, check=True, cwd="/", env={"PATH": "/usr/bin:/bin"}
    )
    assert done.stdout.count("\1") == 1, f"{line}: no command, or one of several that the shell runs"
    return tuple(done.stdout.removesuffix("\1").split("\0")[:-1])
