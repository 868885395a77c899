"""What code and which tools a step's result depends on, found without importing either.

The digest of a file is that of what it means (core/meaning): comments, docstrings and messages make nothing stale.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Protocol

from llm_build.core.digest import digest_of_names
from llm_build.core.disk import read_whole
from llm_build.core.memo import is_settled
from llm_build.core.step_io import Json
from llm_build.core.store import Store

_OWN = "llm_build"
_FOLLOWS = " > "  # "a.b.* > c.d.*"
_CACHE = "cache/meanings"  # another name whenever core/meaning writes a tree out in another way
# Modules that compute no byte of any result: what they hold is words. What they import counts all the same.
WORDS_ONLY = frozenset(("llm_build.core.errors",))


class Sources(Protocol):
    """Where fingerprints come from; tests give a fake."""

    def code(self, function: str, more: tuple[str, ...]) -> tuple[str, dict[str, str]]:
        """Fingerprint of "module:function" plus the modules ``more``, and the digest of each file behind it."""
        ...

    def tool(self, distribution: str) -> str:
        """Installed version, "absent" when not installed."""
        ...

    def save(self) -> None:
        """Remember what was read for the next build."""
        ...


class FileSources:
    """Reads module files, once per content: what each means and imports is kept in the store by the file's stat."""

    def __init__(self, store: Store) -> None:
        self._store = store
        known = store.load_document(_CACHE)
        self._known: dict[str, list[Json]] = known if isinstance(known, dict) else {}
        self._changed = False
        self._files: dict[str, str | None] = {}  # module -> its file, None when there is none
        self._read: dict[str, tuple[str, list[str]]] = {}  # file -> digest and imported names, this run
        self._fingerprints: dict[tuple[str, tuple[str, ...]], tuple[str, dict[str, str]]] = {}
        self._bases: dict[str, str] = {}
        self._tools: dict[str, str] | None = None

    def code(self, function: str, more: tuple[str, ...]) -> tuple[str, dict[str, str]]:
        request = (function, more)
        if request not in self._fingerprints:
            table = self._table([function.partition(":")[0], *more])
            self._fingerprints[request] = (digest_of_names(table), table)
        return self._fingerprints[request]

    def _table(self, names: list[str]) -> dict[str, str]:
        """{"llm_build/steps/lower.py": digest} of every module that ``names`` reach by import statements.

        A name "a.b.* > c.d.*" stands for the module c.d.X beside each a.b.X that is reached, where there is one."""
        roots = [name for name in names if _FOLLOWS not in name]
        beside = [tuple(part.removesuffix("*") for part in name.split(_FOLLOWS)) for name in names if _FOLLOWS in name]
        ours = {_OWN, *(root.partition(".")[0] for root in roots)}
        for root in roots:
            assert self._file(root), f"no module {root} to fingerprint"
        table: dict[str, str] = {}
        seen: set[str] = set()
        queue = list(roots)
        for module in queue:  # grows while it is walked
            if module in seen or module.partition(".")[0] not in ours:
                continue
            seen.add(module)
            queue.append(module.rpartition(".")[0] or module)
            queue += [after + module.removeprefix(before) for before, after in beside if module.startswith(before)]
            if file := self._file(module):
                digest, imported = self._scan(file, module)
                if module not in WORDS_ONLY:
                    table[file[len(self._base(module)) + 1 :]] = digest
                queue += imported
        return table

    def _file(self, module: str) -> str | None:
        if module not in self._files:
            stem = os.path.join(self._base(module), *module.split("."))
            candidates = (f"{stem}.py", os.path.join(stem, "__init__.py"))
            self._files[module] = next((path for path in candidates if os.path.isfile(path)), None)
        return self._files[module]

    def _base(self, module: str) -> str:
        """The folder that holds the module's top-level package."""
        top = module.partition(".")[0]
        if top not in self._bases:
            self._bases[top] = str(Path(__file__).parents[2]) if top == _OWN else _folder_on_path(top)
        return self._bases[top]

    def _scan(self, file: str, module: str) -> tuple[str, list[str]]:
        if file in self._read:
            return self._read[file]
        status = os.stat(file)
        stamp = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        known = self._known.get(file)
        if known is None or not _is_scan(known) or known[0] != stamp:
            from llm_build.core.meaning import read_module  # with ast: a build with nothing to do reads no module

            known = [stamp, *read_module(read_whole(file), module, file.endswith("__init__.py"))]
            if is_settled(status):
                self._known[file] = known
                self._changed = True
        self._read[file] = (known[1], known[2])
        return self._read[file]

    def tool(self, distribution: str) -> str:
        if self._tools is None:
            self._tools = installed_versions()
        return self._tools.get(_normal(distribution), "absent")

    def save(self) -> None:
        if self._changed:
            self._store.save_document(_CACHE, self._known)
            self._changed = False


def _is_scan(known: Json) -> bool:
    """Whether it is [stamp, digest, imported names]: a cache may be damaged."""
    return (
        type(known) is list
        and len(known) == 3
        and type(known[1]) is str
        and type(known[2]) is list
        and {*map(type, known[2])} <= {str}
    )


def _folder_on_path(top: str) -> str:
    for folder in sys.path:
        stem = os.path.join(folder or os.getcwd(), top)
        if os.path.isfile(f"{stem}.py") or os.path.isdir(stem):
            return folder or os.getcwd()
    return ""


def installed_versions() -> dict[str, str]:
    """{distribution: version} from the names of the ``.dist-info`` folders on sys.path: what importlib.metadata would
    say, without its 20 ms. The first folder on the path wins."""
    versions: dict[str, str] = {}
    for folder in sys.path:
        try:
            names = os.listdir(folder or ".")
        except OSError:
            continue
        for entry in names:
            if entry.endswith(".dist-info"):
                name, _, version = entry.removesuffix(".dist-info").partition("-")
                versions.setdefault(_normal(name), version)
    return versions


def _normal(distribution: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", distribution).lower()
