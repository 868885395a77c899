"""mkdocs hooks: one page for each room of builder with the docstrings of its modules. They are read, not imported."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
FOLDER = "reference/python"


def modules_of(room: Path) -> list[Path]:
    return sorted(path for path in room.rglob("*.py") if path.name != "__main__.py")


def first_line(module: Path) -> str:
    """Of its docstring, which may be one sentence over several lines."""
    return (ast.get_docstring(ast.parse(module.read_text("utf-8"))) or "").partition("\n\n")[0].replace("\n", " ")


def name_of(module: Path) -> str:
    parts = module.relative_to(ROOT / "builder").with_suffix("").parts
    return ".".join(("llm_build", *parts)).removesuffix(".__init__")


def page(room: Path) -> str:
    names = [name_of(module) for module in modules_of(room) if module.read_text("utf-8").strip()]
    return f"# llm_build.{room.name}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def index(rooms: list[Path]) -> str:
    lines = ["# Python modules", "", "Generated from the docstrings in `builder/`, one page for each room.", ""]
    for room in rooms:
        lines += [f"## [{room.name}]({room.name}.md)", "", "| module | what it is |", "| --- | --- |"]
        for module in modules_of(room):
            if text := first_line(module):
                lines.append(f"| `{name_of(module)}` | {text.replace('|', '&#124;')} |")
        lines.append("")
    return "\n".join(lines)


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages; mkdocs calls it after it has listed docs/."""
    rooms = sorted(path for path in (ROOT / "builder").iterdir() if any(path.glob("*.py")))
    pages = {f"{FOLDER}/{room.name}.md": page(room) for room in rooms} | {f"{FOLDER}/modules.md": index(rooms)}
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files
