"""`build doctor --store`: read every byte of a store and compare it with what the records say."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, NamedTuple

from llm_build.core import disk, lock
from llm_build.core.digest import CHUNK_BYTES
from llm_build.core.filestore import FileStore
from llm_build.core.gc import blob_files, last_results, records
from llm_build.core.leftovers import clear, leftovers
from llm_build.core.record import Record
from llm_build.core.small_file import check_not_hollow, open_file

OnProgress = Callable[[int, int], None]  # done and total, bytes


class Fault(NamedTuple):
    """A blob with other bytes than its name says, a blob that a record needs and that is not there, or a record whose
    seal is broken. ``name`` is the blob's hex digest or the record's key, ``steps`` are those that must run again
    ("demo-q4f16_1-cpu: quantize[3]"; a result that no goal remembers is "result <key>")."""

    kind: Literal["damaged", "missing", "garbage"]
    name: str
    steps: tuple[str, ...]


class Checked(NamedTuple):
    """``orphans`` are blobs without a record, ``leftovers`` scratch folders and locks of builds that were killed.
    Neither is a fault: `build gc` frees the ones, the next build clears the others."""

    records: int
    blobs: int
    nbytes: int
    faults: tuple[Fault, ...]
    orphans: int
    leftovers: tuple[str, ...]

    @property
    def whole(self) -> bool:
        return not self.faults


def check(store: FileStore, progress: OnProgress | None = None, repair: bool = False) -> Checked:
    """Hash every blob on all cores, unseal every record. ``repair`` removes what is damaged, the records that need it
    and what dead builds left, so that the next build makes it again. Builds may run meanwhile. BuildError when the
    store cannot be read or, to repair it, written."""
    try:
        with _no_gc(store):
            return _check(store, progress, repair)
    except OSError as error:
        raise disk.explain_os_error(error, "cannot check the store", store.root) from error


def _check(store: FileStore, progress: OnProgress | None, repair: bool) -> Checked:
    files = {path: status for path in blob_files(store) if (status := _status(path))}
    damaged = {path.name for path in _damaged(files, progress)}
    records_by_path = dict(records(store))
    keys_by_blob = _keys_by_blob(records_by_path.items())
    garbage = [path.stem for path, record in records_by_path.items() if record is None]
    present = {path.name for path in files}
    missing = [name for name in sorted(keys_by_blob.keys() - present) if not store.path(name).exists()]
    if repair:
        _drop(store, {path: status for path, status in files.items() if path.name in damaged})
        for key in {*garbage, *(key for name in (*damaged, *missing) for key in keys_by_blob.get(name, ()))}:
            store.forget(key)
    users = _users(store)
    faults = [
        *(Fault("damaged", name, _steps(keys_by_blob.get(name, set()), users)) for name in sorted(damaged)),
        *(Fault("missing", name, _steps(keys_by_blob[name], users)) for name in missing),
        *(Fault("garbage", key, _steps({key}, users)) for key in garbage),
    ]
    total = sum(status.st_size for status in files.values())
    left = tuple(leftovers(store.root)) if (store.root / "tmp").is_dir() else ()
    return Checked(len(records_by_path), len(files), total, tuple(faults), len(present - keys_by_blob.keys()), left)


def _keys_by_blob(records_by_path: Iterable[tuple[Path, Record | None]]) -> dict[str, set[str]]:
    """{hex digest of a blob: the keys of the records that name it}."""
    keys_by_blob: dict[str, set[str]] = {}
    for path, record in records_by_path:
        for output in record.outputs.values() if record else ():
            if not output.of:
                keys_by_blob.setdefault(output.digest.rpartition(":")[2], set()).add(path.stem)
    return keys_by_blob


def _damaged(files: Mapping[Path, os.stat_result], progress: OnProgress | None) -> Iterator[Path]:
    """Blobs whose bytes are not those of their name, the largest read first."""
    from concurrent.futures import ThreadPoolExecutor

    total, done = sum(status.st_size for status in files.values()), 0
    largest_first = sorted(files, key=lambda path: -files[path].st_size)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path, digest in zip(largest_first, pool.map(_digest, largest_first), strict=True):
            if digest not in ("gone", path.name):
                yield path
            done += files[path].st_size
            if progress:
                progress(done, total)


def _digest(path: Path) -> str:
    """Hex blake3 of a file, "gone" when a build has removed it, "unreadable" where there is none. Reads, and does not
    map: a bad sector under a map kills the process."""
    from blake3 import blake3

    hasher, buffer = blake3(), memoryview(bytearray(CHUNK_BYTES))
    try:
        with open_file(path) as file:
            check_not_hollow(file.fileno(), path)
            while count := file.readinto(buffer):
                hasher.update(buffer[:count])
    except FileNotFoundError:
        return "unreadable" if path.is_symlink() else "gone"
    except PermissionError:
        raise
    except OSError:
        return "unreadable"
    return str(hasher.hexdigest())


def _drop(store: FileStore, damaged: Mapping[Path, os.stat_result]) -> None:
    for path, status in damaged.items():
        store.drop(path, status)
    if (store.root / "tmp").is_dir():
        clear(store.root)


def _users(store: FileStore) -> dict[str, list[str]]:
    users: dict[str, list[str]] = {}
    for goal, name, key, _ in last_results(store):
        users.setdefault(key, []).append(f"{goal}: {name}")
    return users


def _steps(keys: set[str], users: Mapping[str, list[str]]) -> tuple[str, ...]:
    return tuple(sorted({name for key in keys for name in users.get(key, [f"result {key[:12]}"])}))


def _status(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return disk.status_of(path)
    return None


@contextmanager
def _no_gc(store: FileStore) -> Iterator[None]:
    """Keep `build gc` away, which would remove what is about to be looked at; in a read-only store there is none."""
    handle = None
    with suppress(OSError):
        handle = lock.lock_shared(store.root / "locks" / "builds", wait=True)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
