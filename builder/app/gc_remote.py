"""Free what nothing refers to any more in the shared store."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from llm_build.app.merge import merge
from llm_build.app.options import BuildOptions
from llm_build.app.places import examine_stores, open_store_at, places_of
from llm_build.app.request import compose_one, folders_of
from llm_build.app.share import shared_of
from llm_build.config.choices import Composed
from llm_build.provenance.lock_file import ENDING, read
from llm_build.remote.bucket import AccessDenied, Unreachable
from llm_build.remote.gc import Freed, gc
from llm_build.remote.store import SharedStore

_ELSEWHERE = ("store.", "dist.")  # overrides that say where things are, and nothing of what is to stay


class Collected(NamedTuple):
    """``roots``: how many keys stay whatever their age."""

    url: str
    roots: int
    freed: Freed


def collect_remote(options: BuildOptions, max_age_s: float | None, dry_run: bool) -> Collected:
    """``max_age_s``: of manifests. Raises UserError and, when the shared store is away, StepError."""
    composed = compose_one(options)
    store = shared_of(open_store_at(places_of(composed)), writes=not dry_run)
    roots = _locked_keys() | (_keys_of_recipe(options, composed) if _names_a_recipe(options) else set())
    store.connection.open()
    try:
        freed = gc(store.connection.bucket(), store.location.transfers, max_age_s, roots, dry_run)
    except (Unreachable, AccessDenied) as error:
        store.connection.give_up(error)
        raise store.connection.failure() or error from error
    return Collected(store.location.url, len(roots), freed)


def _locked_keys() -> set[str]:
    """Keys of the artifacts that lock files of the current folder name."""
    cells = [cell for path in sorted(Path("recipes").glob(f"*{ENDING}")) for cell in read(path).cells.values()]
    return {key for cell in cells for key in cell.steps.values()}


def _names_a_recipe(options: BuildOptions) -> bool:
    return any(not o.lstrip("+~").startswith(_ELSEWHERE) for o in options.overrides)


def _keys_of_recipe(options: BuildOptions, composed: Composed) -> set[str]:
    """Keys of all steps of the recipe on the command line, as far as their results are known."""
    request = merge([composed], folders_of(options))
    store: SharedStore = shared_of(request.store)
    return {verdict.key for verdict in examine_stores(request.plan, store).values() if verdict.key}
