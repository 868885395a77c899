"""The errors that people see. Anything else that is raised is a defect of ours."""

from collections.abc import Iterable

_MOST = 16_000  # characters of a message: what it quotes from a file may be of any length


class BuildError(Exception):
    """Ends the command with one clear message and no traceback.

    ``message`` says what was wrong, what was found and what is allowed; ``hint`` is the next thing to type or do.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        message = message if len(message) <= _MOST else f"{message[:_MOST]}..."
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["BuildError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)


def worst_code(codes: Iterable[int]) -> int:
    """The exit code of a command that did several things: 130 (interrupted), else 1 (a step failed), else 2 (a mistake,
    or a cell that cannot be built), else 0."""
    known = set(codes)
    return next((code for code in (130, 1, 2) if code in known), max(known, default=0))


class UserError(BuildError):
    """A mistake in what the user gave: the recipe, the checkpoint, a path. Exit code 2."""

    exit_code = 2


class Unsupported(UserError):
    """Asked for correctly, but not possible on the target or on this machine. A sweep goes on without it."""


class StepError(BuildError):
    """A step that could not do its work (compiler, disk, verification). Exit code 1."""


class Interrupted(BuildError):
    """Ctrl-C: running steps were stopped, finished results are kept. Exit code 130."""

    exit_code = 130
