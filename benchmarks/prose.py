"""English prose of an installed package's docstrings, as a text that no scheme and no demo model was chosen on.

    python benchmarks/prose.py numpy > numpy.txt

Paragraphs of 80 to 900 characters that read like sentences, each once, files in order, without tests; 90,000 in all.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NOT_PROSE = re.compile(r">>>|::|[|<>=\\_`{}\[\]]")
SHORTEST, LONGEST, WHOLE = 80, 900, 90_000


def paragraphs(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for part in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(part.split())
                sentence = text[:1].isupper() and text.endswith(".") and not NOT_PROSE.search(text)
                if sentence and SHORTEST <= len(text) <= LONGEST:
                    yield text


def text_of(package: str) -> str:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        sys.exit(f"no package {package}, or one without sources")
    seen: dict[str, None] = {}
    for file in sorted(Path(found.origin).parent.rglob("*.py")):
        if not {"test", "tests"} & set(file.parts):
            seen |= dict.fromkeys(paragraphs(file.read_text("utf-8")))
    return "\n\n".join(seen)[:WHOLE]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", help="an installed package with Python sources")
    sys.stdout.write(text_of(parser.parse_args().package))


if __name__ == "__main__":
    main()
