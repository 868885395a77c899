"""Makes docs/images/terminal.svg: runs real commands on a pseudo-terminal and draws the screen they leave, and of the
first build and a sweep one that they show on their way.

pip install pexpect pyte && python -m tools.terminal
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
SWEEP = "build -m quant=q4f16_1,q8f16_1,w8a8 target=cpu,a6000,vulkan --allow-unsupported"
COMMANDS = (
    "build",
    "build",
    "build plan model.context_window_size=512",
    SWEEP,
    'build generate "The function returns" --max-tokens 40',
)
WIDTH, HEIGHT = 108, 40
STATUSES = ("▸ ", "ran", "fresh", "waiting", "unsupported", "✓ ", "· ", "waits for", "; next: ")


def screens(command: str, folder: str) -> list[Text]:
    """What a terminal shows while the command runs, the last one when it is done."""
    words = command.replace("build", f"{sys.executable} -m llm_build", 1)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "tools" / "path"),
        "LLM_BUILD_STORE": f"{folder}/store",
        "TERM": "xterm-256color",
    }
    child = pexpect.spawn(words, cwd=folder, env=env, timeout=300, dimensions=(HEIGHT, WIDTH))
    terminal = pyte.Screen(WIDTH, HEIGHT)
    stream = pyte.ByteStream(terminal)
    shown = []
    while True:
        try:
            stream.feed(child.read_nonblocking(1 << 16, timeout=0.2))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            return [*shown, picture(terminal)]
        shown.append(picture(terminal))


def picture(terminal: pyte.Screen) -> Text:
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


def telling(shown: Text) -> tuple[int, int]:
    """How much a screen has to tell: how many states there are, and how many steps say how far they are."""
    return sum(status in shown.plain for status in STATUSES), shown.plain.count(" passes ")


def main() -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    with tempfile.TemporaryDirectory() as folder:
        for number, command in enumerate(COMMANDS):
            *before, last = screens(command, folder)
            console.print(f"[bold green]$[/] {command}", highlight=False)
            if command == SWEEP or not number:
                console.print(max(reversed(before), key=telling), highlight=False)  # the last of them
                console.print("[dim]... and when it is done:[/]", highlight=False)
            console.print(last, highlight=False)
            console.print()
    console.save_svg(str(ROOT / "docs" / "images" / "terminal.svg"), title="llm-build")


if __name__ == "__main__":
    main()
