"""What differs between two recipes, locks or built folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_build.app.lock_state import lock_state
from llm_build.app.measurements import last_measurement
from llm_build.app.merge import merge, request_of
from llm_build.app.options import BuildOptions
from llm_build.app.request import BuildRequest, folders_of, is_sweep
from llm_build.app.sweep import sweep
from llm_build.config.choices import Composed, choices_of
from llm_build.config.paths import store_path
from llm_build.config.strict import nearest_names
from llm_build.core.digest import digest_of_names
from llm_build.core.errors import BuildError, UserError
from llm_build.core.filestore import open_store
from llm_build.core.store import Store
from llm_build.planner.graph.recipe_keys import RECIPE_KEYS
from llm_build.provenance.diff.locks import differences_between, format_lock_difference
from llm_build.provenance.diff.report import compare
from llm_build.provenance.diff.sides import DiffSide, lock_of_folder, modules_of, read_statement
from llm_build.provenance.lock_file import ENDING, Cell, read


def diff(options: BuildOptions, last: str, now: str) -> dict[str, Any]:
    """The comparison of two words as provenance/diff/report.py makes it. Overrides are of both recipes."""
    sides = _load_side(options, last), _load_side(options, now)
    store = sides[0].store or sides[1].store or open_store(store_path())
    return compare(*sides, store, partial(_bench_of, store), RECIPE_KEYS)


def folder_differences(options: BuildOptions, folder: Path, other: str) -> list[str]:
    """How a folder differs from a recipe, a lock or another folder, a line each."""
    last, now = _load_side(options, other), _load_side(options, str(folder))
    differences = differences_between(last.lock, now.lock, modules_of(last, now), common=True)
    return [format_lock_difference(each) for each in differences]


def _load_side(options: BuildOptions, word: str) -> DiffSide:
    """Raises UserError for a word that names nothing, with what it may name."""
    path = Path(word)
    if path.is_dir():
        return DiffSide(word, "folder", lock_of_folder(path, read_statement(path)), {}, path)
    if word.endswith(ENDING):
        return DiffSide(word, "lock", read(path), {})
    return _side_of_recipe(options, _recipe_name(options, word))


def _recipe_name(options: BuildOptions, word: str) -> str:
    known = choices_of("recipe", folders_of(options))
    name = word.removeprefix("recipes/").removesuffix(".yaml")
    if name not in known:
        near = nearest_names(name, list(known)) or list(known)
        raise UserError(
            f"{word!r} is no folder, no lock file (NAME{ENDING}) and no recipe; recipes: {', '.join(near)}",
            "build diff dist/A dist/B, or build diff A.lock.yaml A",
        )
    return name


def _side_of_recipe(options: BuildOptions, name: str) -> DiffSide:
    """A recipe as it is now, with the overrides of the line. What is built already is known down to the bytes."""
    request = _one_request(replace(options, overrides=(f"recipe={name}", *options.overrides)))
    state = lock_state(request)
    outputs = request.outputs
    folders = [outputs[cell] for cell, known in state.lock.cells.items() if _is_built(outputs[cell], known)]
    only = folders[0] if len(outputs) == len(folders) == 1 else None
    return DiffSide(name, "recipe", state.lock, dict(state.modules), only, request.store)


def _is_built(folder: Path, cell: Cell) -> bool:
    """Whether the folder holds what the cell would be, and no earlier build."""
    try:
        (built,) = lock_of_folder(folder, read_statement(folder)).cells.values()
    except BuildError:
        return False
    return bool(cell.outputs) and built.outputs == cell.outputs


def _one_request(options: BuildOptions) -> BuildRequest:
    """One request, also of a recipe that is a sweep."""
    if not is_sweep(options):
        return request_of(options)
    requests: list[BuildRequest] = []

    def keep(batch: Sequence[Composed]) -> int:
        requests.append(merge(batch, folders_of(options)))
        return 0

    sweep(options, keep)
    return requests[0]


def _bench_of(store: Store, name: str, cell: Cell) -> Mapping[str, Any] | None:
    """What `build bench` measured of a cell's very bytes, None when it did not, or the store has it no more."""
    return last_measurement(store, name, digest_of_names(cell.outputs))
