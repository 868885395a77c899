"""The errors that people see. Anything else that is raised is a defect of ours."""


class BuildError(Exception):
    """Ends the command with one clear message and no traceback.

    ``message`` says what was wrong, what was found and what is allowed; ``hint`` is the next thing to type or do.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type["BuildError"], tuple[str, str]]:
        return type(self), (self.message, self.hint)


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
