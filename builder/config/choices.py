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
from llm_build.core.small_file import read_small

_PACKAGE = Path(__file__).resolve().parent.parent
GROUPS = ("model", "quant", "target", "package", "verify", "executor", "recipe")
SECTIONS = (*GROUPS[:-1], "store", "dist", "pins", "provenance", "sweep")
PRIMARY = "build"  # conf/build.yaml
_DUMP = "debug.dump"  # what some type for a dump of each stage
MOST_BYTES = 4 << 20  # of a choice or a recipe
_FEW = 12  # choices that an error lists
CHOICE = re.compile(rf"^(?P<group>{'|'.join(GROUPS)})=(?P<choice>[\w./-]+)$")


@dataclass(frozen=True, slots=True)
class Composed:
    """One job's configuration: plain values, the choice made in each group, and the overrides that made it.

    ``sweeps``: its recipe holds hydra.sweeper.params, so that it stands for many. ``typed``: what stood on the command
    line; ``overrides`` of a sweep also have what a recipe's sweeper says."""

    values: dict[str, Any]
    choices: dict[str, str]
    overrides: tuple[str, ...]
    sweeps: bool = False
    typed: tuple[str, ...] = ()

    def section(self, name: str) -> dict[str, Any]:
        """The values of a section; empty where something else stands there, which the parser refuses by name."""
        found = self.values.get(name)
        return found if isinstance(found, dict) else {}


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
    try:
        lines = read_small(file, MOST_BYTES).decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
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
        if match is None or text == "recipe=null":
            continue
        known = choices_of(match["group"], folders)
        if match["choice"] not in known:
            raise unknown_choice(match["group"], match["choice"], list(known))
    for text in overrides:
        key = re.match(r"^[+]{0,2}([a-z_]+)((?:\.[\w.]+)?)=", text)
        if key:
            _check_key(key[1], key[2])


def _check_key(first: str, rest: str) -> None:
    """Raises UserError where a group or a section is none: modell=, modell.source=, dist=."""
    if not rest and first in SECTIONS and first not in GROUPS:
        raise UserError(f"{first} is a section of keys, not a choice; allowed: {first}.key=value", "build --cfg job")
    allowed = [*SECTIONS, "hydra"] if rest else [*GROUPS, "name"]
    if first not in allowed:
        near = nearest_names(first, allowed)
        suggestion = (
            f"did you mean {listed([name + rest for name in near])}?" if near else f"allowed: {', '.join(allowed)}"
        )
        what = "no such section of keys" if rest else "no such choice group"
        hint = "build lower --dump DIR" if first + rest == _DUMP else "build --cfg job" if rest else "build list"
        raise UserError(f"{first}{rest}=: {what}; {suggestion}", hint)


def unknown_choice(group: str, choice: str, known: list[str]) -> UserError:
    """The error for a choice that no file holds: the nearest ones, or all where they are few."""
    if group == "model" and (source := hub_source(choice) or _folder_of(choice)):
        return UserError(
            f"model={choice}: no such choice; a checkpoint is named by model.source",
            f"build model=auto model.source={source}",
        )
    near = nearest_choices(group, choice, known)
    if near:
        said = f"did you mean {listed(near)}?"
    else:
        said = f"allowed: {', '.join(known)}" if len(known) <= _FEW else f"allowed: one of {len(known)}"
    return UserError(f"{group}={choice}: no such choice; {said}", f"build list {group}")


def listed(names: Sequence[str]) -> str:
    """a; a or b; a, b or c."""
    return " or ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def nearest_choices(group: str, word: str, known: Sequence[str]) -> list[str]:
    """Up to three choices that somebody who typed ``word`` may have meant. Those that begin so come first, and of them
    the default of the group and those most like it: q4f16_1 for q4."""
    usual = _usual_choice(group)

    def rank(name: str) -> tuple[bool, int, int, str]:
        return name != usual, -_common_ending(name, usual), len(name), name

    begun = sorted((name for name in known if name.lower().startswith(word.lower())), key=rank) if word else []
    return list(dict.fromkeys([*begun, *nearest_names(word, known)]))[:3]


def _usual_choice(group: str) -> str:
    """The default of a group, as conf/build.yaml has it."""
    match = re.search(
        rf"^  - {group}: ([\w.-]+)$", (shipped("conf") / f"{PRIMARY}.yaml").read_text("utf-8"), re.MULTILINE
    )
    return match[1] if match else ""


def _common_ending(one: str, other: str) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return count


def hub_source(word: str) -> str:
    """ "hf://org/name" for a word that spells a repository of the hub and is nothing on this disk, else ""."""
    spells = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", word)
    return f"hf://{word}" if spells and not Path(word).exists() else ""


def _folder_of(word: str) -> str:
    return word if "/" in word and Path(word).expanduser().exists() else ""
