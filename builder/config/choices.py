"""What may be chosen and where the files lie: groups of choices, conf/ and recipes/ folders, and one composed job.

compose.py, the Hydra plugins and the sweeps stand on this; it needs no Hydra itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_build.config.strict import nearest_names
from llm_build.core.errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
GROUPS = ("model", "quant", "target", "package", "verify", "executor", "recipe")
SECTIONS = (*GROUPS[:-1], "store", "dist", "pins", "provenance", "sweep")
CHOICE = re.compile(rf"^(?P<group>{'|'.join(GROUPS)})=(?P<choice>[\w./-]+)$")


@dataclass(frozen=True, slots=True)
class Composed:
    """One job's configuration: plain values, the choice made in each group, and the overrides that made it.

    ``sweeps``: its recipe holds hydra.sweeper.params, so that it stands for many."""

    values: dict[str, Any]
    choices: dict[str, str]
    overrides: tuple[str, ...]
    sweeps: bool = False


@dataclass(frozen=True, slots=True)
class Folders:
    """Where configuration comes from, the user's own first."""

    conf: tuple[Path, ...]
    recipes: tuple[Path, ...]


def shipped(name: str) -> Path:
    """conf/ or recipes/: inside the wheel, or beside the package in a source checkout."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name


def find_folders(extra: str | None = None) -> Folders:
    """``extra`` is --config-dir. A folder is a user's own when it holds what ours does; others are left alone."""
    cwd = Path.cwd()
    mine = [Path(extra).resolve()] if extra else []
    if extra and not mine[0].is_dir():
        raise UserError(f"--config-dir {extra}: no such folder")
    own = cwd / "conf"
    if own.is_dir() and own.resolve() != shipped("conf"):
        mine.append(own)
    recipes = [cwd / "recipes"] if (cwd / "recipes").is_dir() and cwd / "recipes" != shipped("recipes") else []
    return Folders((*mine, shipped("conf")), (*recipes, shipped("recipes")))


def choices_of(group: str, folders: Folders) -> dict[str, Path]:
    """Every choice of a group with its file, sorted by name; the user's own file wins."""
    files: dict[str, Path] = {}
    roots = folders.recipes if group == "recipe" else tuple(c / group for c in folders.conf)
    for root in roots:
        for file in root.rglob("*.yaml"):
            if not file.name.endswith(".lock.yaml"):
                files.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)
    return dict(sorted(files.items()))


def describe(file: Path) -> str:
    """The one line that a choice's file says of itself: its first comment."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            text = line.lstrip("#").strip()
            if line.startswith("#") and not text.startswith("@package"):
                return text
            if line.strip() and not line.startswith("#"):
                break
    return ""


def check_choices(overrides: Sequence[str], folders: Folders) -> None:
    """Raises UserError for a choice that no file holds, with the nearest names."""
    for text in overrides:
        match = CHOICE.match(text)
        if match is None or match["choice"] == "null":
            continue
        known = choices_of(match["group"], folders)
        if match["choice"] not in known:
            raise unknown_choice(match["group"], match["choice"], list(known))
    groups = [text.partition("=")[0] for text in overrides if re.match(r"^[a-z_]+=", text)]
    for group in groups:
        if group not in (*GROUPS, "name"):
            near = nearest_names(group, [*GROUPS, "name"])
            suggestion = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join((*GROUPS, 'name'))}"
            raise UserError(f"{group}=: no such choice group; {suggestion}", "build list")


def unknown_choice(group: str, choice: str, known: list[str]) -> UserError:
    near = nearest_names(choice, known)
    suggestion = f"did you mean {' or '.join(near)}?" if near else ""
    allowed = f"allowed: {', '.join(known)}"
    return UserError(
        f"{group}={choice}: no such choice; {'; '.join(filter(None, (suggestion, allowed)))}", f"build list {group}"
    )
