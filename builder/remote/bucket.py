"""Objects of a shared store by name ("blobs/ab/abcd..."), over fsspec. The only file that imports it.

Whatever a backend raises becomes one of four: Missing, AccessDenied, Unreachable, or an OSError of the disk here."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from llm_build.core.disk import FULL, NO_FILE
from llm_build.core.errors import UserError
from llm_build.core.small_file import open_file, read_small
from llm_build.core.step_io import Json
from llm_build.remote.location import Location, with_environment

_T = TypeVar("_T")
OnBytes = Callable[[int], None]  # called with the bytes moved since the last call

_CHUNK_BYTES = 1 << 20
_PART_BYTES = 16 << 20
_PAUSES_S = (0.2, 0.8)  # before the second and the third attempt
_CONNECT_S = 10.0
S3 = ("s3", "s3a")
PARTIAL = ".part"  # a file on its way into a store without atomic writes
_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "created")  # as the backends call it
_CREDENTIAL_ERRORS = {  # of botocore, google.auth and paramiko, which need not be installed
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError",
    "ClientAuthenticationError", "AuthenticationException",
}  # fmt: skip


class Missing(Exception):
    """There is no such object."""


class AccessDenied(Exception):
    """The store is there, and does not let us."""


class Unreachable(Exception):
    """No answer, or none that makes sense."""


class TooLong(Exception):
    """More bytes arrive than the object may have."""


class Entry(NamedTuple):
    name: str
    nbytes: int
    modified: float  # unix time, seconds


class Bucket:
    """Safe to use from many threads. Transient errors are tried again, twice."""

    def __init__(self, location: Location) -> None:
        fs, self._root = _connect(location)
        self._location = location
        self._shared = fs
        self._own = threading.local()
        self._own.fs = fs
        self._is_objects = bool(fs.async_impl)  # an object store: a put is seen whole or not at all
        self._is_local = location.protocol in ("file", "local")  # whose names may be no files: pipes, devices
        self._parts = {"chunksize": _PART_BYTES} if location.protocol in S3 else {}  # bounds the memory of an upload

    @property
    def _fs(self) -> Any:
        """The file system: one for all threads where fsspec has a loop of its own for it, else one for each (paramiko
        mixes up the answers of threads that share a connection)."""
        if self._is_objects:
            return self._shared
        if not hasattr(self._own, "fs"):
            self._own.fs, _ = _connect(self._location)
        return self._own.fs

    def read(self, name: str) -> bytes:
        return _retried(lambda: self._read(self._at(name)))

    def _read(self, path: str) -> bytes:
        return read_small(Path(path)) if self._is_local else bytes(self._fs.cat_file(path))

    def get(self, name: str, target: Path, on_bytes: OnBytes) -> None:
        """Download to ``target``; its bytes are not to be trusted yet. ``on_bytes`` may raise TooLong."""
        _retried(lambda: self._get(self._at(name), target, on_bytes))

    def _get(self, path: str, target: Path, on_bytes: OnBytes) -> None:
        if self._is_objects:
            self._fs.get_file(path, str(target), callback=_callback(on_bytes))
            return
        opened = open_file(path) if self._is_local else self._fs.open(path, "rb")
        with opened as source, open(target, "wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                file.write(chunk)
                on_bytes(len(chunk))

    def put(self, name: str, source: Path, on_bytes: OnBytes) -> None:
        _retried(lambda: self._put(self._at(name), source, on_bytes))

    def _put(self, path: str, source: Path, on_bytes: OnBytes) -> None:
        if self._is_objects:
            self._fs.put_file(str(source), path, callback=_callback(on_bytes), **self._parts)
            return
        with open(source, "rb") as file:
            self._write(path, iter(lambda: file.read(_CHUNK_BYTES), b""), on_bytes)

    def write(self, name: str, data: bytes) -> None:
        path = self._at(name)
        if self._is_objects:
            _retried(lambda: self._fs.pipe_file(path, data))
        else:
            _retried(lambda: self._write(path, iter([data]), lambda _: None))

    def _write(self, path: str, chunks: Iterator[bytes], on_bytes: OnBytes) -> None:
        """Write beside ``path`` and rename: nobody sees half a file."""
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        partial = f"{path}.{os.urandom(6).hex()}{PARTIAL}"
        try:
            with self._fs.open(partial, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
                    on_bytes(len(chunk))
            self._fs.mv(partial, path)
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(partial)
            raise

    def nbytes(self, name: str) -> int | None:
        """The size of an object, None when there is none."""
        try:
            return _retried(lambda: int(self._fs.info(self._at(name))["size"]))
        except Missing:
            return None

    def entries(self, folder: str) -> list[Entry]:
        """Everything below a folder ("" for all), read anew."""
        return _retried(lambda: self._entries(folder))

    def _entries(self, folder: str) -> list[Entry]:
        self._fs.invalidate_cache()
        start = len(self._root) + 1
        infos = self._fs.find(self._at(folder) if folder else self._root, detail=True)
        return [Entry(path[start:], int(info["size"]), _modified(info)) for path, info in infos.items()]

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects; those that are gone already are no error."""
        for name in names:
            with suppress(Missing):
                _retried(partial(self._fs.rm_file, self._at(name)))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def _connect(location: Location) -> tuple[Any, str]:
    """The file system and the path of the store in it. UserError when fsspec cannot speak it; AccessDenied,
    Unreachable."""
    from fsspec.core import url_to_fs

    options = _options(location)
    try:
        fs, root = url_to_fs(location.url, skip_instance_cache=True, **options)
    except ImportError as error:
        extra = "pip install 'llm-build[remote]'" if location.protocol in S3 else str(error)
        raise UserError(
            f"store.remote={location.url} needs a package that is not installed ({error})",
            f"{extra}; or build store.remote=null",
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f"store.remote={location.url} with store.remote_options {sorted(location.options)}: {error}",
            "docs/guides/store.md has an example for each kind of store",
        ) from error
    except Exception as error:  # some backends connect at once
        raise _as_ours(error) from error
    if location.protocol in S3:
        fs.retries = 2  # of s3fs: a download that breaks off is continued once, nothing else is tried five times
    return fs, root.rstrip("/")


def _options(location: Location) -> dict[str, Json]:
    """What the user gave; for S3 with limits, so that a dead server is noticed."""
    options: dict[str, Json] = dict(with_environment(location.options))
    if location.protocol in S3:
        limits = {"connect_timeout": min(_CONNECT_S, location.timeout_s), "read_timeout": location.timeout_s}
        once = {"retries": {"total_max_attempts": 1}}  # we try again ourselves
        options["config_kwargs"] = {**limits, **once, **options.get("config_kwargs", {})}
        options.setdefault("use_listings_cache", False)
        options.setdefault(
            "max_concurrency", 1
        )  # per object: many are transferred at once, and a small one takes one request
    return options


def _callback(on_bytes: OnBytes) -> Any:
    from fsspec.callbacks import Callback

    class Moving(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            on_bytes(inc)

    return Moving()


def _modified(info: dict[str, Any]) -> float:
    value = next((info[key] for key in _MODIFIED if key in info), None)
    if isinstance(value, datetime):
        return value.timestamp()
    return (
        float(value) if isinstance(value, (int, float)) else time.time()
    )  # unknown: as young as can be, never removed


def _retried(call: Callable[[], _T]) -> _T:
    for pause_s in _PAUSES_S:
        try:
            return _translated(call)
        except Unreachable:
            time.sleep(pause_s)
    return _translated(call)


def _translated(call: Callable[[], _T]) -> _T:
    try:
        return call()
    except TooLong:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        raise _as_ours(error) from error


def _as_ours(error: Exception) -> Exception:
    if isinstance(error, FileNotFoundError) or (isinstance(error, OSError) and error.errno in NO_FILE):
        return Missing(str(error))
    refused = isinstance(error, PermissionError) or type(error).__name__ in _CREDENTIAL_ERRORS
    return (AccessDenied if refused else Unreachable)(_describe(error))


def _describe(error: Exception) -> str:
    """One line of what a backend raised."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines[0] else type(error).__name__
