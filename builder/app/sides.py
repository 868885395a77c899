"""What a word of `build diff` names, in the shape of a lock: a folder that was built, a lock file, a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from builder.app.lock_state import QUALITY, known_modules, quality_of, settings_of, state_of
from builder.cli.arguments import Arguments
from builder.config.choices import Composed, choices_of
from builder.config.strict import nearest
from builder.core.digest import digest_of_names
from builder.core.errors import BuildError, UserError
from builder.core.store import Store
from builder.provenance.diff.locks import Modules
from builder.provenance.lock_file import ENDING, Cell, Lock, Names, read
from builder.report.words import base

if TYPE_CHECKING:
    from builder.app.request import Job


class Loaded(NamedTuple):
    """``kind``: folder, lock or recipe. ``folder``: where the files are, if they are. ``store``: that of a recipe."""

    name: str
    kind: str
    lock: Lock
    modules: dict[str, Names]
    folder: Path | None = None
    store: Store | None = None


def load(arguments: Arguments, word: str) -> Loaded:
    """Raises UserError for a word that names nothing, with what it may name."""
    path = Path(word)
    if path.is_dir():
        from builder.cli.verify_provenance import statement_in

        return Loaded(word, "folder", lock_of_folder(path, statement_in(path)), {}, path)
    if word.endswith(ENDING):
        return Loaded(word, "lock", read(path), {})
    return of_recipe(arguments, recipe_name(arguments, word))


def recipe_name(arguments: Arguments, word: str) -> str:
    from builder.app.request import folders_of

    known = choices_of("recipe", folders_of(arguments))
    name = word.removeprefix("recipes/").removesuffix(".yaml")
    if name not in known:
        near = nearest(name, list(known)) or list(known)
        raise UserError(
            f"{word!r} is no folder, no lock file (NAME{ENDING}) and no recipe; recipes: {', '.join(near)}",
            "build diff dist/A dist/B, or build diff A.lock.yaml A",
        )
    return name


def of_recipe(arguments: Arguments, name: str) -> Loaded:
    """A recipe as it is now, with the overrides of the line. What is built already is known down to the bytes."""
    job = job_of_recipe(replace(arguments, overrides=(f"recipe={name}", *arguments.overrides)))
    state = state_of(job)
    folders = [job.outputs[cell] for cell, known in state.lock.cells.items() if is_there(job.outputs[cell], known)]
    only = folders[0] if len(job.outputs) == len(folders) == 1 else None
    return Loaded(name, "recipe", state.lock, dict(state.modules), only, job.store)


def is_there(folder: Path, cell: Cell) -> bool:
    """Whether the folder holds what the cell would be, and no earlier build."""
    from builder.cli.verify_provenance import statement_in

    try:
        (there,) = lock_of_folder(folder, statement_in(folder)).cells.values()
    except BuildError:
        return False
    return bool(cell.outputs) and there.outputs == cell.outputs


def job_of_recipe(arguments: Arguments) -> Job:
    """One job, also of a recipe that is a sweep."""
    from builder.app.request import folders_of, is_sweep, job_of, merge
    from builder.app.sweep import sweep

    if not is_sweep(arguments):
        return job_of(arguments)
    jobs: list[Job] = []

    def keep(batch: Sequence[Composed]) -> int:
        jobs.append(merge(batch, folders_of(arguments)))
        return 0

    sweep(arguments, keep)
    return jobs[0]


def modules_of(*sides: Loaded) -> Modules:
    """Looks a code fingerprint up wherever it may be known."""

    def modules(fingerprint: str) -> Names | None:
        for side in sides:
            found = side.modules.get(fingerprint)
            if found is None and side.store is not None:
                found = known_modules(side.store, fingerprint)
            if found is not None:
                return found
        return None

    return modules


def lock_of_folder(folder: Path, document: Any) -> Lock:
    """What build.json says, in the shape of a lock. It has no code and no inputs of steps, and the tools of all steps.

    Raises StepError for what is no statement of ours."""
    from builder.provenance.statement import NAME, check_statement, checkpoint_digest, dependencies_below

    check_statement(document, folder / NAME)
    definition = document["predicate"]["buildDefinition"]
    asked = definition["externalParameters"]["recipe"]
    steps = document["predicate"]["runDetails"]["byproducts"]
    facts = {step["name"]: step["annotations"].get("facts", {}) for step in steps}
    outputs = {each["name"]: f"blake3:{each['digest']['blake3']}" for each in document["subject"]}
    files = dependencies_below("file", definition["resolvedDependencies"])
    small = {f"file {name}": digest for name, digest in files.items()}
    made = digest_of_names(outputs).partition(":")[2]
    cell = Cell(
        artifact=next(step["name"] for step in steps if step["digest"]["sha256"] == made),
        choices=asked["choices"],
        settings=settings_of(asked),
        checkpoint={"digest": checkpoint_digest(steps), "source": asked["model"]["source"], **small},
        steps=keys_of(steps),
        outputs=outputs,
        nbytes={name: (folder / name).stat().st_size for name in outputs if (folder / name).is_file()},
        quality=quality_of(each for each in facts.values() if {*QUALITY[:3]} <= each.keys()),
    )
    return Lock(asked["choices"].get("recipe"), definition["internalParameters"]["tools"], {asked["name"]: cell})


def keys_of(steps: list[Any]) -> Names:
    """Keys by step, the items of a fan-out as one, as in a lock."""
    found: dict[str, str] = {}
    items: dict[str, dict[str, str]] = {}
    for step in steps:
        name, key = step["name"], step["annotations"].get("key")
        if key and name != base(name):
            items.setdefault(f"{base(name)}[*]", {})[name[len(base(name)) + 1 : -1]] = key
        elif key:
            found[name] = key
    return found | {name: digest_of_names(keys) for name, keys in items.items()}
