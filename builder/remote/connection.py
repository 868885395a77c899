"""One command's connection to a shared store: opened when first needed, given up for good when it fails."""

from __future__ import annotations

import queue
import threading

from llm_build.core.errors import BuildError, StepError, UserError
from llm_build.core.events import Event, Warned
from llm_build.core.filestore import VERSION as LAYOUT
from llm_build.core.store import RemoteLookup
from llm_build.remote.bucket import AccessDenied, Bucket, Missing, Unreachable
from llm_build.remote.layout import VERSION
from llm_build.remote.location import Location

_CREDENTIALS = {  # protocol: what to set
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING",
    "abfs": "AZURE_STORAGE_CONNECTION_STRING",
    "sftp": "store.remote_options.username, and a key that ssh finds",
    "ssh": "store.remote_options.username, and a key that ssh finds",
}


class Connection:
    """``events``: what the threads report, in order; a BuildError is to be raised by who reads it."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.events: queue.SimpleQueue[Event | RemoteLookup | BuildError] = queue.SimpleQueue()
        self.damaged: set[str] = set()  # digests and keys whose object is not to be trusted, and is replaced
        self.given_up: Exception | None = None  # why it was given up
        self.unwritable: Exception | None = None
        self._bucket: Bucket | None = None
        self._reached = False
        self._has_version = False
        self._lock = threading.Lock()  # held for a moment
        self._request_lock = threading.Lock()  # held while a request is out

    def open(self) -> None:
        """Load what speaks the protocol. UserError when that cannot be; most send nothing yet."""
        if self._bucket is None and not self.given_up:
            try:
                self._bucket = Bucket(self.location)
            except (Unreachable, AccessDenied) as error:
                self.give_up(error)

    def bucket(self) -> Bucket:
        """The objects. The first call, whoever makes it, finds out whether the store is there."""
        with self._request_lock:
            if self.given_up:
                raise Unreachable("given up before") from self.given_up
            assert self._bucket is not None, "open() comes first"
            if not self._reached:
                self._check_layout(self._bucket)
                self._reached = True
        return self._bucket

    def _check_layout(self, bucket: Bucket) -> None:
        try:
            layout = bucket.read(VERSION).decode("utf-8", "replace").strip()
        except Missing:
            return
        self._has_version = True
        if layout != LAYOUT:
            raise Unreachable(f"its layout is {layout[:20]!r}, this version reads {LAYOUT!r}")

    def writable(self) -> Bucket:
        """The objects, for whoever writes some."""
        bucket = self.bucket()
        with self._request_lock:
            if not self._has_version:
                bucket.write(VERSION, f"{LAYOUT}\n".encode())
                self._has_version = True
        return bucket

    # Trouble

    def warn(self, message: str) -> None:
        self.events.put(Warned("", "", message))

    def give_up(self, error: Exception) -> None:
        """Go on without the store, and say so once."""
        with self._lock:
            if self.given_up:
                return
            self.given_up = error
        self.warn(f"{self._describe(error)}; going on without it{self._advice(error)}")

    def close_for_writing(self, error: Exception) -> None:
        """Go on without uploads, and say so once."""
        with self._lock:
            if self.unwritable or self.given_up:
                return
            self.unwritable = error
        why = "there is no such bucket or folder" if isinstance(error, Missing) else str(error)
        message = f"the shared store {self.location.url} cannot be written ({why}); results stay here"
        self.warn(f"{message}. store.mode=readonly does not try")

    def failure(self) -> BuildError | None:
        """What a command that is about the shared store ends with."""
        if self.given_up:
            kind = UserError if isinstance(self.given_up, AccessDenied) else StepError
            return kind(
                self._describe(self.given_up),
                self._advice(self.given_up).removeprefix(". ") or "the same command again",
            )
        if self.unwritable:
            return UserError(f"the shared store {self.location.url} cannot be written ({self.unwritable})")
        return None

    def _describe(self, error: Exception) -> str:
        does = "refuses the credentials" if isinstance(error, AccessDenied) else "does not answer"
        return f"the shared store {self.location.url} {does} ({error})"

    def _advice(self, error: Exception) -> str:
        if not isinstance(error, AccessDenied):
            return ""
        return f". Set {_CREDENTIALS.get(self.location.protocol, 'store.remote_options')}"
