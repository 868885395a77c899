"""Writes the generated pages of docs/reference: the command line, the configuration keys, a checkpoint's fields.

    python -m tools.reference            writes the pages of PAGE_OF
    python -m tools.reference --check    compares, and ends with exit code 1 where a page is out of date

What a key means is said once: by the comment beside it in conf/, else beside its field in builder/config/schema.py.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import yaml

from llm_build import architectures
from llm_build.architectures.fields import FIELDS, ROPE_FIELDS
from llm_build.architectures.foreign import FOREIGN
from llm_build.cli.commands import COMMANDS
from llm_build.cli.options import parser
from llm_build.config.choices import GROUPS, Folders, choices_of, describe
from llm_build.config.strict import ALLOWED
from llm_build.core.fields import Kind
from llm_build.formats.checkpoint import MOST_BYTES, SMALL_BYTES
from llm_build.formats.generation_config import SAMPLING

ROOT = Path(__file__).resolve().parent.parent
CONF, SCHEMA, PAGES = ROOT / "conf", ROOT / "builder" / "config" / "schema.py", ROOT / "docs" / "reference"
KEY = re.compile(r"^(?P<indent> *)(?P<name>\w+):(?P<rest>.*)$")
NESTED = {"Calibration", "DeviceLimits", "Exact"}  # whose fields stand below the field that has it
BUILD, VERIFY = CONF / "build.yaml", CONF / "verify" / "default.yaml"


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a dataclass of the schema."""

    name: str
    kind: str  # its annotation
    default: str
    comment: str


@dataclass(frozen=True, slots=True)
class Key:
    """A row of the reference. ``path`` is dotted."""

    path: str
    kind: str
    default: str
    allowed: str
    meaning: str


def sections() -> dict[str, dict[str, Any]]:
    """Section -> its keys with their defaults: conf/build.yaml, and below it the defaults of its choices."""
    values = yaml.safe_load(BUILD.read_text("utf-8"))
    values["verify"] = yaml.safe_load(VERIFY.read_text("utf-8"))
    return {name: value for name, value in values.items() if isinstance(value, dict) and name != "hydra"}


def comments(file: Path, section: str = "") -> dict[str, str]:
    """Dotted key -> what the comment beside it says, or else the lines of comment right above it."""
    found: dict[str, str] = {}
    stack, above = [(-1, section)], list[str]()
    for line in file.read_text("utf-8").splitlines():
        if line.lstrip().startswith("#"):
            above.append(line.lstrip(" #").rstrip())
            continue
        if match := KEY.match(line):
            indent = len(match["indent"])
            while stack[-1][0] >= indent:
                stack.pop()
            path = ".".join(filter(None, (stack[-1][1], match["name"])))
            stack.append((indent, path))
            beside = match["rest"].partition(" # ")[2].strip()
            found[path] = beside or " ".join(above)
        above = []
    return {path: text for path, text in found.items() if text}


def classes() -> dict[str, tuple[str, list[Field]]]:
    """Class of the schema -> its docstring and its fields with the comments beside them."""
    source = SCHEMA.read_text("utf-8")
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = (ast.get_docstring(node) or "", list(fields_of(node, lines)))
    return found


def fields_of(node: ast.ClassDef, lines: list[str]) -> Iterator[Field]:
    for each in node.body:
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
            comment = lines[(each.end_lineno or each.lineno) - 1].partition("  # ")[2]
            default = "" if each.value is None else ast.unparse(each.value)
            yield Field(each.target.id, ast.unparse(each.annotation), default, comment.strip())


def keys_of(section: str, class_name: str) -> Iterator[Key]:
    """The keys of a section, nested ones below theirs, in the order of the schema."""
    known = comments(VERIFY, "verify") | comments(BUILD)
    chosen, values = choice_keys(section), sections()[section.partition(".")[0]]
    for name in section.split(".")[1:]:
        values = values.get(name) or {}
    for field in classes()[class_name][1]:
        path = f"{section}.{field.name}"
        (inner,) = NESTED & set(re.findall(r"\w+", field.kind)) or {""}
        default = show(values[field.name]) if field.name in values else plain(field.default)
        default = "" if field.name in chosen else default
        meaning = known.get(path) or field.comment
        if inner and "Mapping" not in field.kind:
            yield Key(path, "mapping", "", "", first_sentence(meaning or classes()[inner][0]))
            yield from keys_of(path, inner)
        else:
            kind = "mapping" if inner else field.kind
            yield Key(path, simple(kind), "" if inner else default, allowed_of(path), first_sentence(meaning))


def choice_keys(group: str) -> set[str]:
    """What the choices of a group set, and conf/build.yaml does not."""
    files = (
        [yaml.safe_load(file.read_text("utf-8")) for file in (CONF / group).glob("*.yaml")] if "." not in group else []
    )
    return {key for file in files for key in file} - set(sections().get(group, {}))


def show(value: Any) -> str:
    """As YAML has it."""
    if isinstance(value, (dict, list)):
        return yaml.safe_dump(value, default_flow_style=True, width=1000).strip() if len(str(value)) < 80 else ""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def plain(default: str) -> str:
    """A default of the schema as YAML has it."""
    known = {"None": "null", "True": "true", "False": "false", "()": "[]", "''": '""', "32 << 20": str(32 << 20)}
    return known.get(default, "{}" if default.startswith("field(") else default.strip("'"))


def simple(kind: str) -> str:
    names = {"str": "text", "int": "number", "float": "number", "bool": "true, false", "None": "null"}
    if kind.startswith("tuple"):
        return "list" + (", null" if "None" in kind else "")
    if kind.startswith("Mapping"):
        return "mapping"
    return ", ".join(dict.fromkeys(names.get(part, part) for part in kind.split(" | ")))


def allowed_of(path: str) -> str:
    rule = ALLOWED.get(path)
    return "" if rule is None else ", ".join(map(str, filter(None, rule))) if isinstance(rule, tuple) else str(rule)


def first_sentence(text: str) -> str:
    """Comments above a key may go on with measurements, which stay in the file."""
    return re.split(r"(?<=[a-z)])[.:] (?=[A-Z])", text.replace("\n", " "))[0].rstrip(".")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Markdown; a pipe in a cell, and what would be a tag, are written as HTML has them."""
    cells = [" | ".join(escape(cell) for cell in row) for row in (head, *rows)]
    return [f"| {cells[0]} |", "|" + " --- |" * len(head), *(f"| {cell} |" for cell in cells[1:])]


def escape(cell: str) -> str:
    cell = cell.replace("|", "&#124;")
    return cell if cell.startswith("`") else cell.replace("<", "&lt;")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def generated(title: str, sources: str) -> list[str]:
    return [f"# {title}", "", f"<!-- python -m tools.reference writes this page from {sources} -->", ""]


def configuration() -> str:
    lines = generated("Configuration keys", "conf/ and builder/config/schema.py")
    lines += [
        *fill(
            "Every key of a recipe. Set a key on the command line (`model.context_window_size=1024`), in a recipe, or "
            "in a choice of your own `./conf`. `build --cfg job` prints all keys with their values. A default that is "
            "empty comes from the choice: `quant=`, `target=` or `verify=`.",
            100,
        ).splitlines(),
        "",
        *fill(f"`name`: {comments(BUILD)['name'].replace('<', '&lt;')}.", 100).splitlines(),
        "",
    ]
    for section in sections():
        docstring = classes()[section.capitalize()][0]
        lines += [f"## {section}", ""]
        if docstring:
            lines += [*fill(" ".join(docstring.split()).replace("``", "`"), 100).splitlines(), ""]
        keys = [key for key in keys_of(section, section.capitalize()) if key.path != "model.architecture"]
        rows = [(code(k.path), k.kind, code(k.default), k.allowed, k.meaning) for k in keys]
        lines += [*table(("key", "type", "default", "allowed", "meaning"), rows), ""]
    lines += ["## Keys of a family", "", "These fields of `config.json` may be set as `model.<key>`.", ""]
    families = [(name, ", ".join(map(code, architectures.load(name).free))) for name in sorted(architectures.FAMILIES)]
    lines += [*table(("family", "keys"), families), ""]
    lines += ["## Choices", ""]
    for group in GROUPS:
        files = choices_of(group, Folders((CONF,), (ROOT / "recipes",)))
        lines += [
            f"### {group}=",
            "",
            *table(("choice", "what it is"), [(code(n), describe(f)) for n, f in files.items()]),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def command_line() -> str:
    lines = generated("Command line", "builder/cli/{commands,options}.py")
    lines += ["    build [command] [group=choice ...] [key=value ...] [options]", "", "## Commands", ""]
    rows = [(code(f"{name} {command.takes}".strip()), command.summary) for name, command in COMMANDS.items()]
    lines += [*table(("command", "what it does"), rows), ""]
    lines += [
        "## Options",
        "",
        "Options may stand anywhere on the line. `build help COMMAND` shows those of a command.",
        "",
    ]
    pages = parser()
    for group in pages._action_groups[2:]:
        rows = []
        for action in group._group_actions:
            names = ", ".join(action.option_strings)
            value = action.metavar or (",".join(map(str, action.choices)) if action.choices else "")
            rows.append((code(f"{names} {value}".strip()), action.help or ""))
        lines += [f"### {group.title}", "", *table(("option", "meaning"), rows), ""]
    lines += ["## Exit codes", "", "[A tour of the commands](../start/tour.md#for-programs) has the table.", ""]
    return "\n".join(lines).rstrip() + "\n"


def checkpoint_fields() -> str:
    """What is read from the files of a checkpoint, and what it may hold."""
    lines = generated("Fields of a checkpoint's files", "builder/architectures/ and builder/formats/")
    lines += [
        *fill(
            "Every field that is read has a type and bounds. Another value is refused with the file, the path of the "
            "field, what was found and what is allowed. Null is a field that is not given. [Tokenizers and chat "
            "templates](../guides/chat.md) says what is read from a tokenizer's files, [Quantized checkpoints]"
            "(../guides/import.md#keys-of-quantization_config) the keys of `quantization_config`.",
            100,
        ).splitlines(),
        "",
    ]
    lines += ["## config.json", "", *table(("field", "allowed"), _kinds(FIELDS)), ""]
    lines += ["`rope_scaling` and `rope_parameters`:", "", *table(("field", "allowed"), _kinds(ROPE_FIELDS)), ""]
    lines += ["These change the computation of other models; a family that does not read them allows:", ""]
    harmless = [(code(name), ", ".join("null" if v is None else str(v).lower() for v in values))
                for name, values in sorted(FOREIGN.items())]  # fmt: skip
    lines += [*table(("field", "allowed"), harmless), ""]
    ids = ("a token id, or a list of token ids", "a token id")
    rows = [(code(name), f"a number from {least:g} to {most:g}", f"{default:g}") for name, (default, least, most)
            in SAMPLING.items()]  # fmt: skip
    rows += [
        (code("eos_token_id"), ids[0], ""),
        *((code(name), ids[1], "") for name in ("bos_token_id", "pad_token_id")),
    ]
    lines += ["## generation_config.json", "", *table(("field", "allowed", "default"), rows), ""]
    lines += ["The ids are read from `config.json` too; -1 is no token.", ""]
    sizes = [(code(name), f"{nbytes >> 20} MiB") for name, nbytes in MOST_BYTES.items()]
    lines += [
        "## Sizes of files",
        "",
        *table(("file", "at most"), [*sizes, ("others", f"{SMALL_BYTES >> 20} MiB")]),
        "",
    ]
    lines += ["A pipe, a device or a folder in the place of a file is refused.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _kinds(fields: Mapping[str, Kind]) -> list[tuple[str, str]]:
    return [(code(name), kind.allowed) for name, kind in sorted(fields.items())]


PAGE_OF = {
    "command-line.md": command_line,
    "configuration.md": configuration,
    "checkpoint-fields.md": checkpoint_fields,
}


def main() -> int:
    pages = {name: write() for name, write in PAGE_OF.items()}
    old = [
        name for name, text in pages.items() if not (PAGES / name).exists() or (PAGES / name).read_text("utf-8") != text
    ]
    if "--check" in sys.argv:
        print("".join(f"docs/reference/{name} is out of date: python -m tools.reference\n" for name in old), end="")
        return 1 if old else 0
    for name in old:
        (PAGES / name).write_text(pages[name], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
