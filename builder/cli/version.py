"""`build --version`"""

from llm_build import __version__
from llm_build.cli.arguments import Arguments


def show(arguments: Arguments) -> int:
    print(f"llm-build {__version__}")
    return 0
