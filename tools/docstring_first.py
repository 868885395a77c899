"""Finds strings that were meant as docstrings and are dead code, as something stands before them.

    python -m tools.docstring_first FILE_OR_FOLDER ...

Prints each and ends with exit code 1 if there is one. pre-commit runs it, and tests/planning/test_style.py.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

BODIES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def files_of(names: list[str]) -> Iterator[Path]:
    for path in map(Path, names):
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def dead_strings(source: str) -> list[int]:
    """The lines of string statements that are not the first statement of their module, class or function."""
    return [
        statement.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, BODIES)
        for statement in node.body[1:]
        if isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


def main() -> int:
    lines = [f"{file}:{line}" for file in files_of(sys.argv[1:]) for line in dead_strings(file.read_text("utf-8"))]
    for line in lines:
        print(f"{line}: a string that is no docstring: something stands before it")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
