"""Free what nothing refers to: records that no goal has used for long, then the blobs that no record names."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llm_build.core import disk, lock
from llm_build.core.errors import UserError
from llm_build.core.filestore import FileStore
from llm_build.core.json_text import parse_json
from llm_build.core.record import Record, decode_record

_DAY_S = 24 * 3600.0


class Freed(NamedTuple):
    """What was freed, or would be. ``linked_nbytes`` of ``nbytes`` stay on the disk as files of an output folder."""

    records: tuple[str, ...]  # "goal: step" of the last place that used it, else the key
    blobs: int
    nbytes: int
    linked_nbytes: int
    kept_nbytes: int


class _Candidate(NamedTuple):
    """A record that may go: when it was last used, by whom, and its blobs."""

    key: str
    used: float
    name: str
    digests: set[str]


def gc(
    store: FileStore,
    max_age_s: float | None = None,
    max_bytes: int | None = None,
    roots: Collection[str] = (),
    dry_run: bool = True,
) -> Freed:
    """Drop records unused for ``max_age_s``, then the longest unused ones until the blobs fit ``max_bytes``, then every
    blob without a record. Keys in ``roots`` stay. UserError while a build is running."""
    handle = None
    if not dry_run and (store.root / "locks").is_dir():
        handle = lock.lock_alone(store.root / "locks" / "builds")
        if handle is None:
            raise UserError(f"a build is using the store at {store.root}", "try again when it is done")
    try:
        return _collect(store, _choose(store, max_age_s, max_bytes, roots), dry_run)
    except OSError as error:
        raise disk.explain_os_error(error, "cannot clean the store", store.root) from error
    finally:
        if handle is not None:
            os.close(handle)


def _choose(
    store: FileStore, max_age_s: float | None, max_bytes: int | None, roots: Collection[str]
) -> tuple[list[_Candidate], list[_Candidate]]:
    """(records that go, records that stay)."""
    candidates = sorted(_candidates(store), key=lambda each: each.used)
    sizes = {path.name: path.lstat().st_size for path in blob_files(store)}
    oldest = time.time() - max_age_s if max_age_s is not None else 0.0
    dropped = [each for each in candidates if each.used < oldest and each.key not in roots]
    kept = [each for each in candidates if each.used >= oldest or each.key in roots]
    if max_bytes is not None:
        for each in list(kept):
            if _nbytes(kept, sizes) <= max_bytes:
                break
            if each.key not in roots:
                kept.remove(each)
                dropped.append(each)
    return dropped, kept


def _nbytes(candidates: list[_Candidate], sizes: dict[str, int]) -> int:
    named: set[str] = set().union(*(each.digests for each in candidates))
    return sum(sizes.get(name, 0) for name in named)


def _candidates(store: FileStore) -> Iterator[_Candidate]:
    uses: dict[str, tuple[float, str]] = {}
    for goal, name, key, used in last_results(store):
        uses[key] = max(uses.get(key, (0.0, "")), (used, f"{goal}: {name}"))
    for path, record in records(store):
        used, name = uses.get(path.stem, (0.0, path.stem))
        outputs = record.outputs.values() if record else ()
        digests = {output.digest.rpartition(":")[2] for output in outputs if not output.of}
        yield _Candidate(path.stem, max(used, path.stat().st_mtime) if record else 0.0, name, digests)


def last_results(store: FileStore) -> Iterator[tuple[str, str, str, float]]:
    """(goal, step name, key, last use in unix seconds) of every result that a goal remembers."""
    for path in sorted((store.root / "places").glob("*.json")):
        yield from _results_at(path)


def _results_at(path: Path) -> list[tuple[str, str, str, float]]:
    """None where the document is damaged, or no file: reasons are poorer, nothing else."""
    try:
        document = parse_json(disk.read_whole(path), max_depth=None)
        goal, steps = str(document["goal"]), document["steps"].items()
        return [(goal, name, str(place["key"]), float(place["used"])) for name, place in steps]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return []


def records(store: FileStore) -> Iterator[tuple[Path, Record | None]]:
    """Every manifest, None where it is garbage, or no file."""
    for path in _in_shards(store.root / "records", "*.json"):
        yield path, _record_at(path)


def _record_at(path: Path) -> Record | None:
    try:
        return decode_record(disk.read_whole(path), path.stem)
    except OSError as error:
        if error.errno in (*disk.NO_FILE, errno.ENOENT):
            return None
        raise


def blob_files(store: FileStore) -> Iterator[Path]:
    yield from _in_shards(store.root / "blobs", "*")


def _in_shards(folder: Path, pattern: str) -> Iterator[Path]:
    """Not through links: what they lead to would be removed as unused."""
    for shard in sorted(folder.glob("*")):
        if not shard.is_symlink():
            yield from sorted(shard.glob(pattern))


def _collect(store: FileStore, chosen: tuple[list[_Candidate], list[_Candidate]], dry_run: bool) -> Freed:
    dropped, kept = chosen
    named: set[str] = set().union(*(each.digests for each in kept))
    blobs, nbytes, linked, kept_nbytes = [], 0, 0, 0
    for path in blob_files(store):
        status = path.lstat()
        if path.name in named:
            kept_nbytes += status.st_size
            continue
        blobs.append(path)
        nbytes += status.st_size
        linked += status.st_size if status.st_nlink > 1 else 0
    if not dry_run:
        for each in dropped:  # a record goes before its blobs: there is never one without its bytes
            store.forget(each.key)
        for path in blobs:
            _remove(path)
        _tidy(store, {each.key for each in kept})
    return Freed(tuple(each.name for each in dropped), len(blobs), nbytes, linked, kept_nbytes)


def _tidy(store: FileStore, keys: set[str]) -> None:
    """Logs of dropped records, and lock files of dead builds (nothing runs now)."""
    for path in (store.root / "logs").glob("*.log"):
        if path.stem not in keys and time.time() - path.lstat().st_mtime > _DAY_S:
            _remove(path)
    for path in (store.root / "locks").glob("*"):
        if path.name != "builds":
            _remove(path)


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        disk.remove_entry(path)
