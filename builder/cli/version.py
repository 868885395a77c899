"""`build --version`"""

from builder import __version__
from builder.cli.arguments import Arguments


def show(arguments: Arguments) -> int:
    print(f"llm-build {__version__}")
    return 0
