"""One side of a comparison, in the shape of a lock: a folder that was built, a lock file, or a recipe as it is now."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from llm_build.core.digest import digest_of_names
from llm_build.core.errors import StepError, UserError
from llm_build.core.examine import known_modules
from llm_build.core.json_text import parse_json
from llm_build.core.small_file import read_small
from llm_build.core.store import Store
from llm_build.provenance.diff.locks import Modules
from llm_build.provenance.lock_file import Cell, Lock, Names, check_lock
from llm_build.provenance.locked_facts import QUALITY, quality_of, settings_of
from llm_build.provenance.statement import NAME, check_statement, checkpoint_digest, dependencies_below


class DiffSide(NamedTuple):
    """``kind``: folder, lock or recipe. ``folder``: where the files are, if they are. ``store``: that of a recipe."""

    name: str
    kind: str
    lock: Lock
    modules: dict[str, Names]
    folder: Path | None = None
    store: Store | None = None


def modules_of(*sides: DiffSide) -> Modules:
    """Looks a code fingerprint up wherever it may be known."""

    def modules(fingerprint: str) -> Names | None:
        for side in sides:
            names = side.modules.get(fingerprint)
            if names is None and side.store is not None:
                names = known_modules(side.store, fingerprint)
            if names is not None:
                return names
        return None

    return modules


def read_statement(folder: Path) -> Any:
    """build.json. UserError when there is none, StepError for what is no JSON."""
    path = folder / NAME
    if not path.is_file():
        what = f"has no {NAME}" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {what}: nothing was built there", "build verify-provenance dist/NAME")
    try:
        return parse_json(read_small(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StepError(f"{path} is not valid JSON: {error}", "build") from error


def lock_of_folder(folder: Path, document: Any) -> Lock:
    """What build.json says, in the shape of a lock. It has no code and no inputs of steps, and the tools of all steps.

    Raises StepError for what is no statement of ours."""
    check_statement(document, folder / NAME)
    try:
        lock = _lock_of(folder, document)
        check_lock(lock)
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
        raise StepError(f"{folder / NAME} is no provenance of llm-build: {why}", "build") from error
    return lock


def _lock_of(folder: Path, document: Any) -> Lock:
    definition = document["predicate"]["buildDefinition"]
    recipe = definition["externalParameters"]["recipe"]
    steps = document["predicate"]["runDetails"]["byproducts"]
    facts = {step["name"]: step["annotations"].get("facts", {}) for step in steps}
    outputs = {each["name"]: f"blake3:{each['digest']['blake3']}" for each in document["subject"]}
    files = dependencies_below("file", definition["resolvedDependencies"])
    small = {f"file {name}": digest for name, digest in files.items()}
    made = digest_of_names(outputs).partition(":")[2]
    cell = Cell(
        artifact=next(step["name"] for step in steps if step["digest"]["sha256"] == made),
        choices=recipe["choices"],
        settings=settings_of(recipe),
        checkpoint={"digest": checkpoint_digest(steps), "source": recipe["model"]["source"], **small},
        steps=_keys_of(steps),
        outputs=outputs,
        nbytes={name: (folder / name).stat().st_size for name in outputs if (folder / name).is_file()},
        quality=quality_of(each for each in facts.values() if {*QUALITY[:3]} <= each.keys()),
    )
    return Lock(recipe["choices"].get("recipe"), definition["internalParameters"]["tools"], {recipe["name"]: cell})


def _keys_of(steps: list[Any]) -> Names:
    """Keys by step, the items of a fan-out as one, as in a lock."""
    keys: dict[str, str] = {}
    items: dict[str, dict[str, str]] = {}
    for step in steps:
        name, key = step["name"], step["annotations"].get("key")
        template, bracket, item = name.partition("[")
        if key and bracket:
            items.setdefault(f"{template}[*]", {})[item.removesuffix("]")] = key
        elif key:
            keys[name] = key
    return keys | {name: digest_of_names(of_items) for name, of_items in items.items()}
