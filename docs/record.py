"""Makes docs/terminal.svg: runs real commands on a pseudo-terminal and draws the screen they leave.

pip install pexpect pyte && python docs/record.py
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from pathlib import Path

import pexpect
import pyte
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "build",
    "build",
    "build plan model.context_window_size=512",
    'build generate "The function returns" --max-tokens 40',
)
WIDTH, HEIGHT = 108, 50


def screen(command: str, folder: str) -> Text:
    """What a terminal shows once the command is done."""
    words = command.replace("build", f"{sys.executable} -m builder", 1)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_BUILD_STORE": f"{folder}/store", "TERM": "xterm-256color"}
    shown = pexpect.run(words, cwd=folder, env=env, timeout=300, dimensions=(HEIGHT, WIDTH))
    terminal = pyte.Screen(WIDTH, HEIGHT)
    pyte.ByteStream(terminal).feed(shown)
    rows = [row_of(terminal, number) for number in range(HEIGHT)]
    while rows and not rows[-1].plain.strip():
        rows.pop()
    return Text("\n").join(rows)


def row_of(terminal: pyte.Screen, number: int) -> Text:
    """One line of the screen with its colours."""
    row = Text()
    for column in range(WIDTH):
        cell = terminal.buffer[number][column]
        colour = (
            ""
            if cell.fg == "default"
            else {"brown": "yellow"}.get(cell.fg, cell.fg if cell.fg.isalpha() else f"#{cell.fg}")
        )
        row.append(cell.data, f"{'bold ' if cell.bold else ''}{colour}".strip())
    row.rstrip()
    return row


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            console.print(f"[bold green]$[/] {command}", highlight=False)
            console.print(screen(command, folder), highlight=False)
            console.print()
    console.save_svg(str(ROOT / "docs" / "terminal.svg"), title="llm-build")


if __name__ == "__main__":
    main()
