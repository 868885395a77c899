"""rich's console, with our answer to a closed pipe."""

from __future__ import annotations

from rich.console import Console as RichConsole


class Console(RichConsole):
    """rich ends the program with 1 where nobody reads what it prints; here the door does, with what a shell says."""

    def on_broken_pipe(self) -> None:
        """Within the handling of the error, which goes on. Raises BrokenPipeError."""
        raise BrokenPipeError
