"""Where results go and are looked for: the store of this machine, the shared one behind it, the output folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llm_build.config.choices import Composed
from llm_build.config.paths import store_path
from llm_build.config.schema import LOCAL, Dist, Executor, Provenance, Store
from llm_build.config.strict import parse
from llm_build.core.errors import UserError
from llm_build.core.examine import StepStatus, examine
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.plan import Plan
from llm_build.core.step_io import Json
from llm_build.planner.resolve import origin_of

if TYPE_CHECKING:
    from llm_build.remote.location import Location


@dataclass(frozen=True, slots=True)
class Places:
    """Where things go. Never part of any identity."""

    store: Path
    dist: Path
    remote: Location | None = None
    key: Path | None = None  # signs build.json
    executor: Executor = LOCAL
    trust: str = "signed"  # whose results are used: core/seals
    replace: bool = False  # output folders of other recipes, too


# What no file of the current folder may choose: results are taken from there, code is loaded and secrets are used.
_OWN_CHOICES: Mapping[str, Json] = {
    "store.path": None, "store.remote": None, "store.remote_options": {}, "store.trust": "signed",
    "provenance.key": None, "executor.address": LOCAL.address,
}  # fmt: skip
_VARIABLES = {"store.path": "LLM_BUILD_STORE", "store.remote": "LLM_BUILD_REMOTE"}


def check_own_choices(composed: Composed) -> None:
    """Raises UserError where a recipe or a choice sets what only the command line and the environment may."""
    typed = dict(_split(word) for word in composed.typed)
    for key, default in _OWN_CHOICES.items():
        section, _, name = key.partition(".")
        value = composed.section(section).get(name, default)
        for path, found in _leaves(key, value) if value != default else ():
            if not _is_typed(path, typed):
                variable = _VARIABLES.get(key)
                raise UserError(
                    f"{path}: found {found} in a file of configuration; allowed: on the command line"
                    f"{f', or in the environment ({variable})' if variable else ''}. Files come with a folder, and "
                    "whoever wrote them would choose whose results are run here",
                    f"build {path}=... if you mean it",
                )


def _split(word: str) -> tuple[str, str]:
    """(key, value) of an override."""
    key, _, value = word.lstrip("+~").partition("=")
    return key, value


def _leaves(path: str, value: Json) -> Iterator[tuple[str, Json]]:
    """(path, value) of all below: a file may add to a mapping of which the command line sets another key."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _leaves(f"{path}.{key}", below)
    else:
        yield path, value


def _is_typed(path: str, typed: Mapping[str, str]) -> bool:
    """Whether the command line sets the value at ``path``: by its name, or in a mapping above it (a={b: 1})."""
    names = path.split(".")
    for count in range(len(names), 0, -1):
        text = typed.get(".".join(names[:count]))
        if text is not None and all(re.search(rf"(?<!\w){re.escape(name)}['\"]?\s*:", text) for name in names[count:]):
            return True
    return False


def places_of(composed: Composed) -> Places:
    """store.path and dist.path of a job as absolute paths, and where its shared store is."""
    check_own_choices(composed)
    store = parse(Store, composed.values.get("store"), "store", origin_of(composed))
    dist = parse(Dist, composed.values.get("dist"), "dist", origin_of(composed))
    signed = parse(Provenance, composed.values.get("provenance"), "provenance", origin_of(composed))
    key = Path(signed.key).expanduser().absolute() if signed.key else None
    return Places(
        store_path(store.path), Path(dist.path).expanduser().absolute(), _remote_of(store), key, _executor_of(composed),
        store.trust, dist.replace,
    )  # fmt: skip


def _executor_of(composed: Composed) -> Executor:
    """UserError for an address that nothing would be asked at."""
    executor = parse(Executor, composed.values.get("executor"), "executor", origin_of(composed))
    if executor.kind == "local" and executor.address != "local":
        raise UserError(
            f"executor.address={executor.address} with executor=local, which knows no other machine",
            f"build executor=ray executor.address={executor.address}",
        )
    return executor


def _remote_of(store: Store) -> Location | None:
    """The shared store: what the recipe says, else $LLM_BUILD_REMOTE, else none."""
    url = store.remote or os.environ.get("LLM_BUILD_REMOTE")
    if not url:
        return None
    from llm_build.remote.location import Location

    return Location(url, store.mode, store.remote_options, store.transfers, store.timeout_s)


def open_store_at(places: Places) -> FileStore:
    """The store, with the shared one behind it where there is one. UserError."""
    if places.remote is None:
        return open_store(places.store, places.trust)
    from llm_build.remote.store import open_shared

    return open_shared(places.store, places.remote, places.trust)


def examine_stores(plan: Plan, store: FileStore) -> dict[str, StepStatus]:
    """examine(), where results in a shared store count as there."""
    if type(store) is FileStore:
        return examine(plan, store)
    from llm_build.remote.examine import examine_with_remote
    from llm_build.remote.store import SharedStore

    assert isinstance(store, SharedStore)
    return examine_with_remote(plan, store)
