"""A recipe's results from the shared store, into its folder. Builds nothing.

With the checkpoint on this machine the plan says which results; without it, or with --locked, the lock file does."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from llm_build.app.build import BuildResult, export_good
from llm_build.app.holder import check_not_of_another
from llm_build.app.options import BuildOptions
from llm_build.app.phases import run_phases
from llm_build.app.places import open_store_at, places_of
from llm_build.app.request import BuildRequest, compose_one, folders_of
from llm_build.app.session import Session, local_executor
from llm_build.app.share import shared_of
from llm_build.core import disk
from llm_build.core.errors import StepError, UserError
from llm_build.core.events import Listener
from llm_build.core.json_text import parse_json
from llm_build.core.record import Record
from llm_build.planner import names, resolve
from llm_build.planner.feasibility.preflight import check_folder
from llm_build.provenance.lock_file import Cell, Lock, find_lock_file, read
from llm_build.remote.store import SharedStore


class PulledCell(NamedTuple):
    """``written``: files that were not in place; ``explained``: whether its build.json came with them."""

    folder: Path
    files: int
    written: int
    explained: bool


class Pulled(NamedTuple):
    url: str
    cells: dict[str, PulledCell]


def lock_to_pull(options: BuildOptions) -> Lock | None:
    """The lock to go by: with --locked, or when there is one and the checkpoint is not on this machine."""
    composed = compose_one(options)
    path = find_lock_file(options.overrides, names.name_of(composed), options.lock_file)
    if options.locked:
        if path is None:
            raise UserError("--locked: there is no lock file for this recipe", "build lock, where it was built")
        return read(path)
    if path is None or composed.sweeps:
        return None
    try:
        missing = resolve.resolve(composed, folders_of(options)).checkpoint.missing
    except UserError:
        return read(path)
    return read(path) if missing else None


def pull(options: BuildOptions, request: BuildRequest, session: Session) -> BuildResult:
    """By plan. Raises BuildError when the shared store is away or refuses."""
    from llm_build.remote.pull import Reader, without_steps

    store = shared_of(request.store)
    for recipe in request.recipes:
        check_folder(request.outputs[recipe.name])
        check_not_of_another(recipe, request)
        if recipe.checkpoint.missing:
            raise UserError(
                f"{recipe.checkpoint.uri} is not on this machine, and its content decides which results are meant",
                "write a lock file where it was built (build lock), and pull by that; or download it with build",
            )
    with session.listen(None) as listen, local_executor(request, options.jobs) as pool:
        outcome, request = run_phases(request, Reader(pool, store), without_steps(listen), keep_going=True)
    if trouble := store.connection.failure():
        raise trouble
    export_good(outcome, request, session.warn)
    return BuildResult(outcome, request)


def pull_locked(options: BuildOptions, lock: Lock, session: Session) -> Pulled:
    """By lock file: the files of each cell, with the digests that the lock has."""
    places = places_of(compose_one(options))
    store = shared_of(open_store_at(places))
    with session.listen(None) as listen:
        records = _bring_records(store, lock, listen)
    cells = {}
    for name, cell in lock.cells.items():
        check_folder(places.dist / name)
        cells[name] = _put_files(store, name, cell, records[cell.steps[cell.artifact]], places.dist / name)
    return Pulled(store.location.url, cells)


def _bring_records(store: SharedStore, lock: Lock, listen: Listener) -> dict[str, Record]:
    """The records of all artifacts of a lock, by key. Raises BuildError when one is not there, or has other files."""
    from llm_build.remote.pull import pull_keys

    for name, cell in lock.cells.items():
        if cell.artifact not in cell.steps:
            raise UserError(f"{name}: the lock file has no key of its artifact", "build lock, where it was built")
    keys = {name: cell.steps[cell.artifact] for name, cell in lock.cells.items()}
    store.seals.expected = {keys[name]: dict(cell.outputs) for name, cell in lock.cells.items()}
    records = pull_keys(store, sorted(set(keys.values())), listen)
    if trouble := store.connection.failure():
        raise trouble
    for name, cell in lock.cells.items():
        record = records.get(keys[name]) or store.downloads.refused.get(keys[name])
        if record is None:
            raise StepError(
                f"{name}: the result that the lock file names is not in {store.location.url} (key {keys[name][:12]})",
                "build push, where it was built; or build it here",
            )
        digests = {file: output.digest for file, output in record.outputs.items()}
        if digests != dict(cell.outputs):
            names = digests.keys() | cell.outputs
            bad = sorted(file for file in names if digests.get(file) != cell.outputs.get(file))
            raise StepError(
                f"{name}: {', '.join(bad[:3])} in {store.location.url} are not those of the lock file",
                "build lock --check, where it was built",
            )
    return records


def _put_files(store: SharedStore, name: str, cell: Cell, record: Record, folder: Path) -> PulledCell:
    """Put the files of a cell in its folder, with the provenance that was left beside them."""
    from llm_build.app.export import put
    from llm_build.provenance.statement import NAME, SIGNATURE

    document = store.read_provenance(record.key, NAME)
    if document is not None and not _is_about(document, cell):
        document = None
    exported = put(name, folder, record.outputs, document or "", store)
    signature = store.read_provenance(record.key, SIGNATURE) if document else None
    if signature:
        disk.write_atomic(folder / SIGNATURE, signature.encode(), folder / f".{SIGNATURE}", durable=False)
    written = len([file for file in exported.written if file != NAME])
    return PulledCell(folder, len(cell.outputs), written, document is not None)


def _is_about(document: str, cell: Cell) -> bool:
    """Whether a provenance document is about the files of the lock."""
    try:
        digests = {each["name"]: f"blake3:{each['digest']['blake3']}" for each in parse_json(document)["subject"]}
    except (ValueError, KeyError, TypeError):
        return False
    return digests == dict(cell.outputs)
