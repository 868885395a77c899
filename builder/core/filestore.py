"""The store on disk.

VERSION                        the layout's number
records/<k2>/<key>.json        one manifest per finished step, written last
blobs/<d2>/<hex>               bytes by blake3 digest, mode 0444
places/<goal>.json             the last key of each step of a goal
code/<hex>.json                module digests behind a code fingerprint, so that a reason can name the file
cache/, logs/                  may be deleted at any time
locks/<key>, tmp/<session>/    belong to running builds
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from threading import get_ident

from llm_build.core import disk, leftovers, lock
from llm_build.core.digest import canonical, digest_of_file
from llm_build.core.errors import BuildError, UserError
from llm_build.core.events import Event, Listener
from llm_build.core.json_text import parse_json
from llm_build.core.memo import Memo, is_settled, stat_key
from llm_build.core.names import is_key
from llm_build.core.record import LastResult, Lookup, Output, Record, decode_record, encode_record
from llm_build.core.seals import Seals
from llm_build.core.step_io import Json
from llm_build.core.store import RemoteLookup

VERSION = "1"
_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # of a blob: it has no bytes
_SHOWN = 20  # characters of another layout's name
_LATEST_S = 1e11  # the year 5138: no time that was ever noted
_LAST_USE_REFRESH_S = (
    24 * 3600.0
)  # how old the "last used" of a result may get before a build that ran nothing writes it


def open_store(path: Path, trust: str = "signed") -> FileStore:
    """The store at ``path``; nothing is created before something is written. ``trust``: see core/seals.

    UserError when the folder is something else or of another layout."""
    store = FileStore(path.absolute(), trust)
    store.check_version()
    return store


class FileStore:
    def __init__(self, root: Path, trust: str = "signed") -> None:
        self.root = root
        self.seals = Seals(trust)
        self.digests = Memo(root / "cache" / "files.log")  # stat of a file -> its digest
        self.tensors = Memo(root / "cache" / "tensors.log")  # stat of a checkpoint's file -> digests of its tensors
        self.sha256s = Memo(root / "cache" / "sha256.log")  # digest of a blob -> its sha256, for provenance
        self.statements = Memo(root / "cache" / "statements.log")  # digest of a statement -> sha256 of its build.json
        self.made_from = Memo(root / "cache" / "made_from.log")  # an output folder -> the checkpoint behind it
        self._records = f"{root}/records/"
        self._blobs = f"{root}/blobs/"
        self._session: Path | None = None
        self._handles: list[int] = []
        self._scratches = 0

    def check_version(self) -> None:
        try:
            layout = disk.read_whole(self.root / "VERSION").decode("utf-8", "replace").strip()[:_SHOWN]
        except (FileNotFoundError, NotADirectoryError):
            self._check_empty()
            return
        except OSError as error:
            raise UserError(f"store.path={self.root} cannot be read ({error.strerror})") from error
        if layout != VERSION:
            raise UserError(
                f"the store at {self.root} has layout {layout!r}, this version reads layout {VERSION!r}",
                "set store.path= to another folder, or remove that one",
            )

    def _check_empty(self) -> None:
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise UserError(f"store.path={self.root} is a file, not a folder", "set store.path= to a folder")
        names = [name for name in os.listdir(self.root) if not name.startswith(".VERSION")]
        if (self.root / "VERSION").exists():  # another build has made the store since it was looked for
            self.check_version()
        elif not set(names) <= {"lost+found", "cache"}:  # the planner remembers things before the first build
            raise UserError(
                f"store.path={self.root} holds other files ({', '.join(sorted(names)[:3])}) and no store",
                "set store.path= to an empty or a new folder",
            )

    # Reading

    def load(self, key: str, repair: bool = False) -> Lookup:
        path = f"{self._records}{key[:2]}/{key}.json"
        try:
            raw = disk.read_whole(path)
        except (FileNotFoundError, NotADirectoryError):
            return Lookup(None, "absent")
        except OSError as error:
            if error.errno not in disk.NO_FILE:
                raise disk.explain_os_error(error, "cannot read the store", self.root) from error
            raw = b""
        record = decode_record(raw, key)
        if record is None:
            if repair:
                _remove(path)
            return Lookup(None, "garbage", "record damaged")
        if not self.seals.accepts(raw, record):
            return Lookup(None, "foreign", "it is not sealed by you, nor signed by a key that you trust")
        for name, output in record.outputs.items():
            if output.of:
                continue
            try:
                status = os.stat(self._blob(output.digest))
            except OSError as error:
                return self._without(error, name)
            seen = (status.st_mtime_ns, status.st_size, stat.S_IFMT(status.st_mode))
            if seen != (output.mtime_ns, output.nbytes, stat.S_IFREG):
                return self._verify_digests(record, repair, self.seals.is_own(raw))
        return Lookup(record)

    def _without(self, error: OSError, name: str) -> Lookup:
        """A blob that cannot be looked at: it is not there. BuildError when it may not be looked at."""
        if error.errno in _ABSENT:
            return Lookup(None, "missing", name)
        raise disk.explain_os_error(error, "cannot read the store", self.root) from error

    def _verify_digests(self, record: Record, repair: bool, own: bool) -> Lookup:
        """Some blob has another mtime or size than its record: hash it, unless its size says enough, then restamp the
        record or drop the blob. A record that is not this user's ``own`` is not written anew, which would seal it."""
        outputs = dict(record.outputs)
        for name, output in record.outputs.items():
            if output.of:
                continue
            path = Path(self._blob(output.digest))
            try:
                status = os.stat(path)
                if not self._holds(path, status, output):
                    if repair:
                        self.drop(path, status)
                    return Lookup(None, "damaged", f"{name} ({output.digest[:15]})")
            except OSError as error:
                return self._without(error, name)
            outputs[name] = output._replace(mtime_ns=status.st_mtime_ns)
        fresh = record._replace(outputs=outputs)
        if repair and own:
            self._update_mtimes(fresh)
        return Lookup(fresh)

    def _holds(self, path: Path, status: os.stat_result, output: Output) -> bool:
        """Whether what was seen at ``path`` is a file with the bytes of an output. OSError."""
        if not stat.S_ISREG(status.st_mode) or status.st_size != output.nbytes:
            return False
        return status.st_mtime_ns == output.mtime_ns or self.file_digest(path) == output.digest

    def _update_mtimes(self, record: Record) -> None:
        with suppress(BuildError):  # a store that cannot be written is hashed again next time
            FileStore.commit(self, record)

    def drop(self, path: Path, seen: os.stat_result) -> None:
        """Remove a damaged blob, unless another build has replaced it since it was ``seen``."""
        with suppress(OSError):
            if disk.status_of(path).st_ino == seen.st_ino:
                _remove(str(path))

    def path(self, digest: str) -> Path:
        return Path(self._blob(digest))

    def _blob(self, digest: str) -> str:
        hex_ = digest.rpartition(":")[2]
        return f"{self._blobs}{hex_[:2]}/{hex_}"

    def read(self, digest: str) -> bytes:
        return disk.read_whole(self._blob(digest))

    def file_digest(self, path: Path) -> str:
        """blake3 digest of any file, remembered by its stat."""
        status = os.stat(path)
        digest = self.digests.get(stat_key(status))
        if digest is None:
            settled = is_settled(status)
            digest = digest_of_file(path)
            if settled:
                self.digests.put(stat_key(status), digest)
        return digest

    # Writing

    def start(self) -> None:
        if self._session is not None:
            return
        try:
            self._prepare()
            handle = lock.lock_shared(self.root / "locks" / "builds", wait=True)
            assert handle is not None
            self._handles.append(handle)
            leftovers.clear(self.root)
            self._begin_session()
        except OSError as error:
            self.stop()
            raise disk.explain_os_error(error, "cannot use the store", self.root) from error

    def _prepare(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        if not (self.root / "VERSION").exists():
            temporary = self.root / f".VERSION.{os.getpid()}"
            disk.write_atomic(self.root / "VERSION", f"{VERSION}\n".encode(), temporary, durable=True)
        for name in ("records", "blobs", "places", "code", "cache", "logs", "locks", "tmp"):
            (self.root / name).mkdir(exist_ok=True)

    def _begin_session(self) -> None:
        """A folder whose "alive" file stays locked as long as this process lives."""
        name = f"{os.getpid()}-{os.urandom(6).hex()}"
        hidden = self.root / "tmp" / f".{name}"
        hidden.mkdir()
        handle = lock.lock_alone(hidden / "alive")
        assert handle is not None
        self._handles.append(handle)
        self._session = self.root / "tmp" / name
        hidden.rename(self._session)

    def stop(self) -> None:
        if self._session is not None:
            disk.remove_tree(self._session)
        else:
            with suppress(OSError):  # a build that found nothing to do clears up too, unless it may not
                leftovers.clear(self.root)
        self._session = None
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()

    def scratch(self) -> Path:
        self._scratches += 1
        path = self._own() / f"step-{self._scratches}"
        try:
            path.mkdir()
        except OSError as error:
            raise disk.explain_os_error(error, "cannot use the store", self.root) from error
        return path

    def _own(self) -> Path:
        assert self._session is not None, "the store was not started"
        return self._session

    def discard(self, scratch: Path) -> None:
        disk.remove_tree(scratch)

    def ingest(self, files: Mapping[str, Path], threads: int = 0) -> dict[str, Output]:
        """Make finished files blobs (moved, synced, read-only). Called by the worker that wrote them. OSError."""
        outputs = {name: self._ingest(path, threads) for name, path in files.items()}
        disk.sync_folders({self.path(output.digest).parent for output in outputs.values()})
        return outputs

    def _ingest(self, file: Path, threads: int) -> Output:
        if file.is_symlink() or os.stat(file).st_nlink > 1:
            file = _own_copy(file)  # bytes that someone else can change are no result
        digest = digest_of_file(file, threads)
        stamp = time.time_ns()
        os.utime(file, ns=(stamp, stamp))
        os.chmod(file, 0o444)
        disk.sync_file(file)
        target = self.path(digest)
        disk.make_folder(target.parent)
        try:
            os.link(file, target)
        except FileExistsError:
            if not _has_digest(target, digest, threads):  # damaged without a trace in its mtime, or no file at all
                _make_way(target)
                os.replace(file, target)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            os.replace(file, target)
        status = os.stat(target)
        return Output(digest, status.st_size, status.st_mtime_ns)

    def commit(self, record: Record) -> None:
        target = Path(f"{self._records}{record.key[:2]}/{record.key}.json")
        data = encode_record(record)
        self._write(target, data + self.seals.line(data.partition(b"\n")[0]), durable=True)

    def request_remote(self, key: str) -> bool:
        return False

    def poll_events(self, wait_s: float) -> list[Event | RemoteLookup]:
        return []

    def drain(self, listener: Listener) -> None:
        """Wait until every result is wherever else it goes, telling what happens."""

    def forget(self, key: str) -> None:
        """Drop a result, so that its step runs again; its blobs go with the next gc."""
        with suppress(FileNotFoundError, NotADirectoryError):
            disk.remove_entry(f"{self._records}{key[:2]}/{key}.json")

    def _write(self, target: Path, data: bytes, durable: bool) -> None:
        folder = self._session or self.root / "tmp"
        temporary = folder / f".{os.getpid()}-{get_ident()}-{target.name}"
        try:
            disk.write_atomic(target, data, temporary, durable)
        except OSError as error:
            raise disk.explain_os_error(error, f"cannot write {target.name}", self.root) from error

    def keep_log(self, scratch: Path, key: str) -> None:
        try:
            if os.path.getsize(scratch / "log"):
                os.replace(scratch / "log", self.root / "logs" / f"{key}.log")
        except OSError:
            pass

    # Last results and documents

    def last_results(self, goal: str) -> dict[str, LastResult]:
        document = self.load_document(f"places/{_file_name(goal)}")
        if not isinstance(document, dict):
            return {}
        try:
            results = {name: LastResult(**fields) for name, fields in document["steps"].items()}
            if all(is_key(each.key) and each.used + each.seconds < _LATEST_S for each in results.values()):
                return results
        except (KeyError, TypeError, AttributeError):
            pass
        return {}  # damaged: reasons are poorer, nothing else

    def goals(self) -> list[str]:
        """All goals that have last results, in the order of their names."""
        documents = [self.load_document(f"places/{file.stem}") for file in (self.root / "places").glob("*.json")]
        named = [document.get("goal") for document in documents if isinstance(document, dict)]
        return sorted(goal for goal in named if isinstance(goal, str))

    def save_last_results(self, goal: str, results: Mapping[str, LastResult], whole: bool) -> None:
        known = self.last_results(goal)
        merged = dict(results) if whole else {**known, **results}
        if _same_results(known, merged):
            return
        document = {"goal": goal, "steps": {name: last._asdict() for name, last in merged.items()}}
        self.save_document(f"places/{_file_name(goal)}", document)

    def load_document(self, name: str) -> Json:
        try:
            return parse_json(disk.read_whole(f"{self.root}/{name}.json"), max_depth=None)
        except (OSError, ValueError):
            return None

    def save_document(self, name: str, value: Json) -> None:
        if not (self.root / "VERSION").exists():
            return
        with suppress(
            BuildError
        ):  # caches and last results make builds faster and reasons better, never right or wrong
            self._write(self.root / f"{name}.json", canonical(value), durable=False)

    # Locks

    def lock(self, key: str) -> lock.FileLock | None:
        try:
            return lock.try_lock(self.root / "locks" / key)
        except OSError as error:
            raise disk.explain_os_error(error, "cannot use the store", self.root) from error

    def lock_holder(self, key: str) -> int:
        return lock.holder(self.root / "locks" / key)


def _same_results(known: Mapping[str, LastResult], now: Mapping[str, LastResult]) -> bool:
    if known.keys() != now.keys():
        return False
    return all(
        now[name].key == last.key and now[name].used - last.used < _LAST_USE_REFRESH_S for name, last in known.items()
    )


def _file_name(goal: str) -> str:
    return "".join(c if c.isalnum() or c in "-_+=," else f"%{ord(c):02x}" for c in goal)


def _own_copy(file: Path) -> Path:
    import shutil

    copy = file.with_name(f"{file.name}.own")
    shutil.copyfile(file, copy)
    return copy


def _has_digest(path: Path, digest: str, threads: int) -> bool:
    try:
        return digest_of_file(path, threads) == digest
    except OSError as error:
        if error.errno in (*disk.NO_FILE, errno.ENOENT):
            return False
        raise


def _make_way(path: Path) -> None:
    """A rename replaces files and links, and no folder."""
    if path.is_dir() and not path.is_symlink():
        disk.remove_entry(path)


def _remove(path: str) -> None:
    with suppress(OSError):
        disk.remove_entry(path)
