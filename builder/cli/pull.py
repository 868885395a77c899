"""`build pull`: a recipe's results from the shared store, into its folder. Builds nothing.

With the checkpoint on this machine the plan says which results; without it, or with --locked, the lock file does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from builder.app.request import Job, composition_cache, folders_of, is_sweep, merge
from builder.app.share import shared_of
from builder.cli.arguments import Arguments
from builder.cli.build import Result, events_to, export_good, finish, listener
from builder.config.choices import Composed
from builder.config.compose import compose
from builder.core.errors import StepError, UserError
from builder.core.events import Listener
from builder.core.record import Record
from builder.planner import resolve
from builder.planner.feasibility.preflight import check_folder
from builder.provenance.lock_file import Cell, Lock, place, read
from builder.remote.store import SharedStore


def show(arguments: Arguments) -> int:
    """0 when everything was there. Raises BuildError when the shared store is away or refuses."""
    if lock := lock_of(arguments):
        return pull_locked(arguments, lock)
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(arguments, lambda jobs: pull(arguments, merge(jobs, folders_of(arguments))))
    return pull(arguments, merge([composed_of(arguments)], folders_of(arguments)))


def composed_of(arguments: Arguments) -> Composed:
    return compose(arguments.overrides, composition_cache(), arguments.options.config_dir)


def lock_of(arguments: Arguments) -> Lock | None:
    """The lock to go by: with --locked, or when there is one and the checkpoint is not on this machine."""
    composed = composed_of(arguments)
    path = place(arguments.overrides, resolve.name_of(composed), arguments.options.file)
    if arguments.options.locked:
        if path is None:
            raise UserError("--locked: there is no lock file for this recipe", "build lock, where it was built")
        return read(path)
    if path is None or composed.sweeps:
        return None
    try:
        missing = resolve.resolve(composed, folders_of(arguments)).checkpoint.missing
    except UserError:
        return read(path)
    return read(path) if missing else None


def pull(arguments: Arguments, job: Job) -> int:
    """By plan."""
    from builder.app.phases import run_phases
    from builder.executors import local
    from builder.remote.pull import Reader, hushed

    store = shared_of(job.store)
    for recipe in job.recipes:
        check_folder(job.outputs[recipe.name])
        if recipe.checkpoint.missing:
            raise UserError(
                f"{recipe.checkpoint.uri} is not on this machine, and its content decides which results are meant",
                "write a lock file where it was built (build lock), and pull by that; or download it with build",
            )
    with (
        listener(events_to(arguments), arguments.options.quiet) as listen,
        local.LocalExecutor(store, local.capacity(arguments.options.jobs)) as pool,
    ):
        outcome, job = run_phases(job, Reader(pool, store.location.url), hushed(listen), keep_going=True)
    if trouble := store.connection.trouble():
        raise trouble
    export_good(outcome, job)
    return finish(arguments, Result(outcome, job))


def pull_locked(arguments: Arguments, lock: Lock) -> int:
    """By lock file: the files of each cell, with the digests that the lock has."""
    places = resolve.places(composed_of(arguments))
    store = shared_of(resolve.open_at(places))
    with listener(events_to(arguments), arguments.options.quiet) as listen:
        records = brought(store, lock, listen)
    written = {}
    for name, cell in lock.cells.items():
        check_folder(places.dist / name)
        written[name] = place_files(store, name, cell, records[cell.steps[cell.artifact]], places.dist / name)
    if arguments.options.json:
        json.dump({"pulled": {name: {"output": str(places.dist / name)} for name in lock.cells}}, sys.stdout, indent=1)
        print()
    else:
        for name, count in written.items():
            print(f"{name}: {count} of {len(lock.cells[name].outputs)} files written to {places.dist / name}/")
    return 0


def brought(store: SharedStore, lock: Lock, listen: Listener) -> dict[str, Record]:
    """The records of all artifacts of a lock, by key. Raises BuildError when one is not there, or has other files."""
    from builder.remote.pull import pull_keys

    keys = {name: cell.steps[cell.artifact] for name, cell in lock.cells.items()}
    records = pull_keys(store, sorted(set(keys.values())), listen)
    if trouble := store.connection.trouble():
        raise trouble
    for name, cell in lock.cells.items():
        record = records.get(keys[name])
        if record is None:
            raise StepError(
                f"{name}: the result that the lock file names is not in {store.location.url} (key {keys[name][:12]})",
                "build push, where it was built; or build it here",
            )
        found = {file: output.digest for file, output in record.outputs.items()}
        if found != dict(cell.outputs):
            bad = sorted(file for file in found.keys() | cell.outputs if found.get(file) != cell.outputs.get(file))
            raise StepError(
                f"{name}: {', '.join(bad[:3])} in {store.location.url} are not those of the lock file",
                "build lock --check, where it was built",
            )
    return records


def place_files(store: SharedStore, name: str, cell: Cell, record: Record, folder: Path) -> int:
    """Put the files of a cell in its folder, with the provenance that was left beside them. How many were written."""
    from builder.app.export import put
    from builder.provenance.statement import NAME, SIGNATURE

    document = store.left(record.key, NAME)
    if document is not None and not speaks_of(document, cell):
        document = None
    if document is None:
        print(f"warning: no {NAME} of {name} in {store.location.url}", file=sys.stderr)
    written = put(name, folder, record.outputs, document or "", store)
    signature = store.left(record.key, SIGNATURE) if document else None
    if signature:
        (folder / SIGNATURE).write_text(signature)
    return len([file for file in written.written if file != NAME])


def speaks_of(document: str, cell: Cell) -> bool:
    """Whether a provenance document is about the files of the lock."""
    try:
        said = {each["name"]: f"blake3:{each['digest']['blake3']}" for each in json.loads(document)["subject"]}
    except (ValueError, KeyError, TypeError):
        return False
    return said == dict(cell.outputs)
