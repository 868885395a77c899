"""Lock files: what a recipe was built from and to, byte for byte, one fact a line, for review in a diff.

A lock is YAML: plain strings and numbers, sorted keys, no paths, no times. `build lock` writes it, `build --locked`
refuses builds that differ from it, and anyone may read it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from llm_build.config.choices import shipped
from llm_build.config.yaml_files import check_bounded
from llm_build.core.errors import UserError
from llm_build.core.names import is_digest, is_inside, is_key
from llm_build.core.small_file import read_small
from llm_build.core.units import count_of

_FORMAT = 1
_MOST_BYTES = 64 << 20
ENDING = ".lock.yaml"
_FACTS = ("settings", "inputs", "quality")  # sections whose values may be numbers
Fact = str | int | float | bool
Facts = Mapping[str, Fact]
Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Cell:
    """One artifact. A section that is empty is not known (yet).

    ``steps``: keys of the steps that make the artifact, a fan-out under "quantize[*]" as the digest of its items' keys;
    the step that reads the checkpoint has no key here, for its own holds inode numbers. ``code``: their fingerprints.
    ``inputs``: what steps depend on beside recipe, checkpoint and tools. ``quality`` is for the reader: not checked.
    """

    artifact: str = ""  # the step whose outputs are the folder
    choices: Names = field(default_factory=dict)
    settings: Facts = field(default_factory=dict)  # the recipe, flat
    checkpoint: Names = field(default_factory=dict)  # source, digest, "file <name>"
    inputs: Facts = field(default_factory=dict)
    code: Names = field(default_factory=dict)
    steps: Names = field(default_factory=dict)
    outputs: Names = field(default_factory=dict)  # {file: "blake3:<hex>"}
    nbytes: Mapping[str, int] = field(default_factory=dict)  # "bytes" in the file
    quality: Facts = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Lock:
    """``tools``: {distribution: version}. ``cells`` by the name of the output folder."""

    recipe: str | None
    tools: Names
    cells: Mapping[str, Cell]


def recipe_of(overrides: Sequence[str]) -> str | None:
    """The recipe of a command line."""
    names = [o.removeprefix("recipe=") for o in overrides if o.startswith("recipe=")]
    return names[-1] if names and names[-1] != "null" else None


def destination(overrides: Sequence[str], names: Sequence[str], file: str | None) -> Path:
    """Where `build lock` writes: --file, beside the user's recipes, or under the name of the one build here.

    Raises UserError for a sweep that has no recipe and no --file: it has no name."""
    if file:
        return Path(file).expanduser().absolute()
    if recipe := recipe_of(overrides):
        return Path.cwd() / "recipes" / f"{recipe}{ENDING}"
    if len(names) != 1:
        raise UserError(
            f"a lock of {count_of(len(names), 'build')} needs a name: none of them is a recipe",
            "--file=NAME.lock.yaml, or write the sweep as a recipe: recipes/NAME.yaml",
        )
    return Path.cwd() / f"{names[0]}{ENDING}"


def find_lock_file(overrides: Sequence[str], name: str, file: str | None) -> Path | None:
    """The lock file that holds for a command line, None when there is none: --file, the user's own, the shipped one.

    ``name``: of the build, for a command line without a recipe."""
    own = destination(overrides, [name], file)
    recipe = recipe_of(overrides)
    ours = shipped("recipes") / f"{recipe}{ENDING}"
    candidates = [own, ours] if recipe and not file else [own]
    return next((path for path in candidates if path.is_file()), None)


def read(path: Path) -> Lock:
    """Raises UserError for what is not a lock file of this version."""
    import yaml

    try:
        text = read_small(path, _MOST_BYTES).decode("utf-8")
        check_bounded(path, text)
        document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = document.pop("lock")
        if version == _FORMAT:
            recipe, tools = document.pop("recipe"), document.pop("tools")
            lock = Lock(recipe, tools, {name: _cell_of(cell) for name, cell in document.pop("cells").items()})
            check_lock(lock)
            return lock if not document else _refuse(path, f"unknown: {', '.join(map(str, document))}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}", "build lock") from error
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())
        return _refuse(path, f"{type(error).__name__}: {message}")
    raise UserError(
        f"{path} is a lock of format {version!r}; this llm-build reads {_FORMAT}", "build lock writes it anew"
    )


def _refuse(path: Path, why: str) -> Lock:
    raise UserError(f"{path} is no lock file ({why[:200]})", "build lock writes it anew")


def _cell_of(data: Mapping[str, Any]) -> Cell:
    """Raises KeyError and TypeError for what is no cell."""
    content_of = {("nbytes" if section == "bytes" else section): content for section, content in data.items()}
    for each in fields(Cell):
        if each.name in content_of:
            _check_section(each.name, content_of[each.name])
    return Cell(**content_of)


def _check_section(name: str, content: Any) -> None:
    if name == "artifact":
        if not isinstance(content, str):
            raise TypeError(f"artifact is {type(content).__name__}, not a name")
        return
    if not isinstance(content, dict):
        raise TypeError(f"{name} is {type(content).__name__}, not a mapping")
    _check_facts(name, content)


def _check_facts(section: str, content: Mapping[Any, Any]) -> None:
    """Raises TypeError for a name that is no string, and for a value that is no plain one of its section's type."""
    other = (str, int, float, bool) if section in _FACTS else (str,)
    allowed = {"nbytes": (int,), "quality": (float, int)}.get(section, other)
    for name, value in content.items():
        if not isinstance(name, str) or type(value) not in allowed:
            raise TypeError(f"{section}: {name!s:.60}: {type(value).__name__}, not {allowed[0].__name__}")


def check_lock(lock: Lock) -> None:
    """Raises TypeError for a section of another type, ValueError for names that lead out of a folder, and for what is
    no key or digest: a pull goes by them."""
    if not (isinstance(lock.recipe, str | None) and isinstance(lock.tools, dict)):
        raise TypeError("recipe is no name, or tools no mapping")
    _check_facts("tools", lock.tools)
    for name, cell in lock.cells.items():
        for each in fields(Cell):
            _check_section(each.name, getattr(cell, each.name))
        if cell.checkpoint and "source" not in cell.checkpoint:
            raise ValueError(f"{name!s:.60}: the checkpoint has no source")
        if not is_inside(name):
            raise ValueError(f"{name!s:.60} leads out of the folder of results")
        for file, digest in cell.outputs.items():
            if not is_inside(file):
                raise ValueError(f"{name}: {file!r:.60} leads out of its folder")
            if not is_digest(digest):
                raise ValueError(f"{name}: {digest!r:.60} is no digest")
        if not is_key(cell.steps.get(cell.artifact, "0")):
            raise ValueError(f"{name}: {cell.steps[cell.artifact]!r:.60} is no key")


def text_of(lock: Lock, command: str) -> str:
    """The file's content. ``command`` wrote it."""
    import yaml

    document = {
        "lock": _FORMAT,
        "recipe": lock.recipe,
        "tools": dict(lock.tools),
        "cells": {name: _sections(cell) for name, cell in lock.cells.items()},
    }
    head = f"# Written by `{command}`, for review in a diff. `build --locked` refuses what does not match it.\n"
    return head + str(yaml.safe_dump(document, sort_keys=True, default_flow_style=False, width=1 << 20))


def _sections(cell: Cell) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    for each in fields(Cell):
        content = getattr(cell, each.name)
        if content:
            sections["bytes" if each.name == "nbytes" else each.name] = (
                dict(content) if each.name != "artifact" else content
            )
    return sections


def write(path: Path, text: str) -> bool:
    """False when the file has that content already. Raises UserError when it cannot be written."""
    try:
        if path.is_file() and path.read_text("utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.{os.getpid()}")
        fresh.write_text(text, "utf-8")
        fresh.replace(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}", "--file=/another/place.lock.yaml") from error
    return True
