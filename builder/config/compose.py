"""argv overrides -> plain dicts, through Hydra. Past this file there is no DictConfig.

Hydra is slow to import and to compose (0.3 s), so the result is remembered beside the store, under the overrides and
the state of every file that Hydra could have read. Files that read the environment or the clock are never remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_build.config.choices import PRIMARY, SECTIONS, Composed, Folders, check_choices, find_folders, shipped
from llm_build.config.literal_paths import take_path_literally
from llm_build.config.yaml_files import read_text
from llm_build.core.disk import read_whole, status_of
from llm_build.core.errors import UserError
from llm_build.core.json_text import parse_json

_HERE = Path(__file__).resolve().parent  # builder/config
# Our own files that a composed result follows from
_COMPOSING = (
    "choices.py",
    "compose.py",
    "from_hydra.py",
    "hydra_plugins.py",
    "hydra_rules.py",
    "literal_paths.py",
    "yaml_files.py",
    "sweeps/batch.py",
)
_VALUE = re.compile(rf"^(?:{'|'.join(SECTIONS)})\.")
_IMPURE = re.compile(r"\$\{\s*(oc\.env|oc\.create|now|python_version|random)")


def normalise(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra gets them: values may also be new keys (our parser judges keys), and paths be anything."""
    done = []
    for text in overrides:
        if "=" not in text and not text.startswith("~"):
            raise UserError(f"{text!r} is neither a command nor an override (name=value)", "build --help")
        literal = take_path_literally(text)
        done.append(f"++{literal}" if _VALUE.match(literal) else literal)
    return done


def compose(overrides: Sequence[str], cache: Path | None, config_dir: str | None = None) -> Composed:
    """One job. ``cache`` is a folder for remembered results, or None. Raises UserError for what Hydra refuses."""
    folders = find_folders(config_dir)
    check_choices(overrides, folders)
    slot = cache / f"{cache_key(overrides, folders)}.json" if cache else None
    if slot and (known := _recall(slot)):
        return replace(known, typed=tuple(overrides))
    composed = hydra_compose(normalise(overrides), folders)
    if slot and is_pure(overrides, folders):
        _remember(slot, composed)
    return replace(composed, typed=tuple(overrides))


def cache_key(overrides: Sequence[str], folders: Folders) -> str:
    """Names the overrides and the state (path, size, times) of every configuration file within reach."""
    from importlib.metadata import version

    state: list[Any] = [
        version("hydra-core"),
        version("omegaconf"),
        list(overrides),
        *((_HERE / name).stat().st_mtime_ns for name in _COMPOSING),
    ]
    for root in (*folders.conf, *folders.recipes):
        state += [str(root), *_stat_tree(root)]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()


def _stat_tree(root: Path) -> list[Any]:
    states: list[Any] = []
    folders, seen = [str(root)], set()
    while folders:
        here = folders.pop()
        try:
            entries = sorted(os.scandir(here), key=lambda e: e.name)
        except OSError:
            continue  # whoever composes says what cannot be read
        for entry in entries:
            if entry.name.endswith(".yaml"):
                stat = status_of(entry.path)
                states.append([entry.path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino])
            elif os.path.isdir(entry.path) and (inode := entry.stat().st_ino) not in seen:
                seen.add(inode)  # links may lead in a circle
                folders.append(entry.path)
    return states


def is_pure(overrides: Sequence[str], folders: Folders) -> bool:
    """False when a value may come from the environment, the clock or another search path."""
    if any(_IMPURE.search(o) or "searchpath" in o for o in overrides):
        return False
    files = (f for root in (*folders.conf, *folders.recipes) for f in root.rglob("*.yaml"))
    return not any(_IMPURE.search(t) or "searchpath" in t for t in map(_text_of, files))


def _text_of(path: Path) -> str:
    """ "" for what cannot be read: whoever composes says so."""
    try:
        return read_text(path)
    except UserError:
        return ""


def _recall(slot: Path) -> Composed | None:
    try:
        values, choices, overrides, sweeps = parse_json(read_whole(slot), max_depth=None)
        return composed_of(values, choices, overrides, sweeps)
    except (OSError, ValueError, TypeError):
        return None


def composed_of(values: Any, choices: Any, overrides: Any, sweeps: Any) -> Composed:
    """What was remembered. Raises TypeError for what was not written here."""
    named = isinstance(choices, dict) and all(isinstance(choice, str) for choice in choices.values())
    typed = isinstance(overrides, list) and all(isinstance(word, str) for word in overrides)
    if not (isinstance(values, dict) and named and typed and isinstance(sweeps, bool)):
        raise TypeError("no composed job")
    return Composed(values, choices, tuple(overrides), sweeps)


def _remember(slot: Path, composed: Composed) -> None:
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

    from llm_build.config.from_hydra import guard, to_plain
    from llm_build.config.hydra_plugins import plugins

    GlobalHydra.instance().clear()
    with plugins(folders, overrides), initialize_config_dir(str(shipped("conf")), version_base="1.3", job_name="build"):
        config = guard(lambda: hydra_compose_api(PRIMARY, overrides, return_hydra_config=True), folders)
        composed: Composed = guard(lambda: to_plain(config, overrides), folders)
        return composed
