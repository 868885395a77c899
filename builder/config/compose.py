"""argv overrides -> plain dicts, through Hydra. Past this file there is no DictConfig.

Hydra is slow to import and to compose (0.3 s), so the result is remembered beside the store, under the overrides and
the state of every file that Hydra could have read. Files that read the environment or the clock are never remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.config.strict import nearest
from builder.core.errors import UserError

HERE = Path(__file__).resolve().parent  # builder/config
PACKAGE = HERE.parent
GROUPS = ("model", "quant", "target", "package", "verify", "executor", "recipe")
SECTIONS = (*GROUPS[:-1], "store", "dist", "pins", "provenance", "sweep")
CHOICE = re.compile(rf"^(?P<group>{'|'.join(GROUPS)})=(?P<choice>[\w./-]+)$")
VALUE = re.compile(rf"^(?:{'|'.join(SECTIONS)})\.")
IMPURE = re.compile(r"\$\{\s*(oc\.env|oc\.create|now|python_version|random)")


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
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


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
    found: dict[str, Path] = {}
    roots = folders.recipes if group == "recipe" else tuple(c / group for c in folders.conf)
    for root in roots:
        for file in root.rglob("*.yaml"):
            if not file.name.endswith(".lock.yaml"):
                found.setdefault(file.relative_to(root).with_suffix("").as_posix(), file)
    return dict(sorted(found.items()))


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


def normalise(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra gets them: values may also be new keys (our parser judges keys)."""
    done = []
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"{text!r} is neither a command nor an override (name=value)", "build --help")
        done.append(f"++{text}" if VALUE.match(text) else text)
    return done


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
            near = nearest(group, [*GROUPS, "name"])
            said = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join((*GROUPS, 'name'))}"
            raise UserError(f"{group}=: no such choice group; {said}", "build list")


def unknown_choice(group: str, choice: str, known: list[str]) -> UserError:
    near = nearest(choice, known)
    said = f"did you mean {' or '.join(near)}?" if near else ""
    allowed = f"allowed: {', '.join(known)}"
    return UserError(
        f"{group}={choice}: no such choice; {'; '.join(filter(None, (said, allowed)))}", f"build list {group}"
    )


def compose(overrides: Sequence[str], cache: Path | None, config_dir: str | None = None) -> Composed:
    """One job. ``cache`` is a folder for remembered results, or None. Raises UserError for what Hydra refuses."""
    folders = find_folders(config_dir)
    check_choices(overrides, folders)
    slot = cache / f"{cache_key(overrides, folders)}.json" if cache else None
    if slot and (known := recall(slot)):
        return known
    composed = hydra_compose(normalise(overrides), folders)
    if slot and is_pure(overrides, folders):
        remember(slot, composed)
    return composed


def cache_key(overrides: Sequence[str], folders: Folders) -> str:
    """Names the overrides and the state (path, size, times) of every configuration file within reach."""
    from importlib.metadata import version

    state: list[Any] = [
        version("hydra-core"),
        version("omegaconf"),
        list(overrides),
        *((HERE / name).stat().st_mtime_ns for name in ("compose.py", "hydra_plugins.py", "sweeps/batch.py")),
    ]
    for root in (*folders.conf, *folders.recipes):
        state += [str(root), *stat_tree(root)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def stat_tree(root: Path) -> list[Any]:
    found: list[Any] = []
    folders = [str(root)]
    while folders:
        here = folders.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except FileNotFoundError:
            continue
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.path)
            elif entry.name.endswith(".yaml"):
                stat = entry.stat()
                found.append([entry.path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
    return found


def is_pure(overrides: Sequence[str], folders: Folders) -> bool:
    """False when a value may come from the environment, the clock or another search path."""
    if any(IMPURE.search(o) or "searchpath" in o for o in overrides):
        return False
    files = (f for root in (*folders.conf, *folders.recipes) for f in root.rglob("*.yaml"))
    return not any(IMPURE.search(t) or "searchpath" in t for t in (f.read_text("utf-8", "replace") for f in files))


def recall(slot: Path) -> Composed | None:
    try:
        values, choices, overrides, sweeps = json.loads(slot.read_bytes())
    except (OSError, ValueError):
        return None
    return Composed(values, choices, tuple(overrides), sweeps)


def remember(slot: Path, composed: Composed) -> None:
    """Best effort: a cache that cannot be written is no reason to stop."""
    try:
        slot.parent.mkdir(parents=True, exist_ok=True)
        temp = slot.with_suffix(f".{os.getpid()}")
        temp.write_text(json.dumps([composed.values, composed.choices, composed.overrides, composed.sweeps]))
        temp.replace(slot)
    except (OSError, TypeError):
        return


def hydra_compose(overrides: list[str], folders: Folders) -> Composed:
    """Through Hydra's own compose(), with our search path."""
    from hydra import compose as hydra_compose_api
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from builder.config.hydra_plugins import register

    register(folders)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(shipped("conf")), version_base="1.3", job_name="build"):
        config = guard(lambda: hydra_compose_api("build", overrides, return_hydra_config=True), folders)
        return to_plain(config, overrides)


def to_plain(config: Any, overrides: Sequence[str]) -> Composed:
    """A composed DictConfig as plain data, interpolations resolved."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    choices = {g: str(c) for g, c in config.hydra.runtime.choices.items() if g in GROUPS and c is not None}
    sweeps = bool(config.hydra.sweeper.get("params"))
    with open_dict(config):
        config.pop("hydra")
        config.pop("recipe", None)
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {first_line(error)}", "build --cfg job") from error
    return Composed(values, choices, tuple(overrides), sweeps)


def guard(call: Callable[[], Any], folders: Folders) -> Any:
    """Hydra's refusals in our words."""
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return call()
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if group in GROUPS:
            raise unknown_choice(group, choice, list(choices_of(group, folders))) from error
        raise UserError(first_line(error), "build list") from error
    except YAMLError as error:
        raise UserError("a configuration file is not valid YAML: " + " ".join(str(error).split())) from error
    except (HydraException, OmegaConfBaseException) as error:
        if "Ambiguous value" in str(error):
            raise UserError(f"{first_line(error)}: several values make a sweep", "build -m ...") from error
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
        raise UserError(f"the recipe does not compose: {text}", "build --help") from error


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
