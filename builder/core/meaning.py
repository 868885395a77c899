"""What a Python file means: a digest that comments, docstrings, formatting and the words of messages do not change.

The digest is the same under every Python that this project runs on: it is taken of the syntax tree as it is written out
here, which leaves out what single versions add or lay out in another way.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from llm_build.core.digest import sha256_hex

_COSMETIC = frozenset(("kind", "type_comment", "ctx"))  # fields that say nothing, or what their place says already
_TYPE_CHECKING = ("TYPE_CHECKING", "typing.TYPE_CHECKING")
_REPORTS = frozenset(("warn", "progress"))  # methods of a step's ``out`` that take text for people
_Put = Callable[[str], object]


def read_module(source: bytes, module: str, is_package: bool) -> tuple[str, list[str]]:
    """("sha256:<hex>" of what a module means, the names that its import statements may load).

    A file that does not parse has the digest of its bytes and imports nothing: the step that needs it will say so."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return "sha256:" + sha256_hex(source), []
    return meaning_of(tree), _imports_of(tree, module, is_package)


def meaning_of(tree: ast.AST) -> str:
    text: list[str] = []
    _write(tree, text.append, words=True)
    return "sha256:" + sha256_hex("".join(text).encode("ascii"))


def _imports_of(tree: ast.AST, module: str, is_package: bool) -> list[str]:
    """Names that the import statements of a module may load, anywhere in it but under ``if TYPE_CHECKING``.

    ``from a import b`` gives "a" and "a.b", whichever of them is a module."""
    package = module if is_package else module.rpartition(".")[0]
    names: set[str] = set()
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.If) and _is_type_checking(node):
            stack += node.orelse
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source_module = _absolute(node.module or "", node.level, package)
            names.add(source_module)
            names.update(f"{source_module}.{alias.name}" for alias in node.names if alias.name != "*")
        else:
            stack += ast.iter_child_nodes(node)
    return sorted(names)


def _is_type_checking(node: ast.If) -> bool:
    return isinstance(node.test, (ast.Name, ast.Attribute)) and ast.unparse(node.test) in _TYPE_CHECKING


def _absolute(name: str, level: int, package: str) -> str:
    if not level:
        return name
    parents = package.split(".")
    parents = parents[: len(parents) - (level - 1)]
    return ".".join([*parents, name] if name else parents)


def _write(value: object, put: _Put, words: bool) -> None:
    """``words``: whether strings count. Those of a message do not."""
    if isinstance(value, ast.AST):
        put(f"({type(value).__name__}")
        for name, field, counts in _fields_of(value, words):
            put(f" {name}=")
            _write(field, put, counts)
        put(")")
    elif isinstance(value, list):
        put("[")
        for each in value:
            if words or not (isinstance(each, str) or _is_text(each)):
                _write(each, put, words)
        put("]")
    else:  # ascii(): what repr() escapes depends on the Unicode tables of a Python
        put(hex(value) if type(value) is int else ascii(value))


def _fields_of(node: ast.AST, words: bool) -> Iterator[tuple[str, object, bool]]:
    """(name, value, whether its strings count) of the fields that say something. Empty ones are left out: versions of
    Python add fields, and differ in whether what is not there is None."""
    for name, value in ast.iter_fields(node):
        counts = words and not _is_message(node, name)
        if value is None or value == [] or _says_nothing(node, name, value, counts):
            continue
        if isinstance(node, ast.JoinedStr):
            yield name, list(_joined(node)), counts
        elif name == "body" and isinstance(value, list):
            yield name, [each for each in value if not _is_bare_text(each)], counts
        else:
            yield name, value, counts


def _says_nothing(node: ast.AST, name: str, value: object, words: bool) -> bool:
    if name in _COSMETIC or (isinstance(node, ast.If) and name == "body" and _is_type_checking(node)):
        return True
    if isinstance(node, ast.FormattedValue) and name == "format_spec":
        return not words or (isinstance(value, ast.JoinedStr) and not value.values)
    if isinstance(node, ast.FormattedValue) and name == "conversion":
        return not words
    return not words and _is_text(value)


def _is_message(node: ast.AST, field: str) -> bool:
    """Whether a field holds text for people: arguments of what is raised, of an assert, of a step's warnings."""
    if isinstance(node, ast.Assert):
        return field == "msg"
    if isinstance(node, ast.Raise):
        return field == "exc" and isinstance(node.exc, ast.Call)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and field in ("args", "keywords"):
        return node.func.attr in _REPORTS and isinstance(node.func.value, ast.Name) and node.func.value.id == "out"
    return False


def _is_bare_text(node: object) -> bool:
    """A docstring, or another string that stands by itself and does nothing."""
    return isinstance(node, ast.Expr) and _is_text(node.value)


def _is_text(node: object) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _joined(node: ast.JoinedStr) -> Iterator[ast.expr | str]:
    """The parts of an f-string, neighbouring constants as one: how they are cut differs between versions of Python."""
    text = ""
    for part in node.values:
        if isinstance(part, ast.Constant):
            text += str(part.value)
            continue
        if text:
            yield text
            text = ""
        yield part
    if text:
        yield text
