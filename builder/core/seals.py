"""Who made a result: a line under its record, which only the holder of a secret can write.

A record's own digest says that it is whole, and a blob's that its bytes are the named ones; whoever can write to a
store can write both. So a record also carries ``hmac-sha256`` (RFC 2104) of its first line, with a secret of this user
that lies outside every store. In a shared store it can also carry signatures: remote/signatures.py. A result that is
neither this user's nor signed by a key that this user trusts is made again: nothing of it is read, loaded or run.

The folder of keys is $LLM_BUILD_KEYS, else "keys" in the user's data folder:

    seal              32 random bytes, mode 0600, made when the first result is kept
    sign.pem          a private ed25519 key (PEM): signs what goes to a shared store
    trusted/*.pem     public ed25519 keys (PEM) of others whose results count
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llm_build.core.disk import read_whole
from llm_build.core.errors import UserError
from llm_build.core.system import user_data_folder

if TYPE_CHECKING:
    from llm_build.core.record import Record

VARIABLE = "LLM_BUILD_KEYS"
_HMAC = b'"hmac-sha256:'
_SECRET_BYTES = 32


def keys_folder() -> Path:
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser().absolute()
    return user_data_folder() / "llm-build" / "keys"


class Seals:
    """What this user makes is sealed, and what others made is judged.

    ``trust``: "own": results of this user; "signed": and those signed by a key in trusted/; "all": whatever a store
    has, so that whoever can write there can run code here."""

    def __init__(self, trust: str = "signed") -> None:
        self.trust = trust
        self.expected: dict[str, Mapping[str, str]] = {}  # key -> {output: digest} that a lock file names: trusted too
        self.folder = keys_folder()

    def line(self, body: bytes) -> bytes:
        """This user's line for a record's first line.

        Raises:
            UserError: there is no secret, and none can be kept.
        """
        return _HMAC + hmac.digest(self._secret or self._make_secret(), body, "sha256").hex().encode() + b'"\n'

    def accepts(self, raw: bytes, record: Record) -> bool:
        """Whether the result of a whole manifest, which was read as ``record``, is to be used."""
        if self.trust == "all":
            return True
        if (digests := self.expected.get(record.key)) is not None:
            return digests == {name: output.digest for name, output in record.outputs.items()}
        return self.is_own(raw)

    def is_own(self, raw: bytes) -> bool:
        """Whether a whole manifest has this user's line."""
        body, _, rest = raw.partition(b"\n")
        at = rest.find(_HMAC)
        if at < 0 or self._secret is None:
            return False
        found = rest[at : rest.find(b"\n", at) + 1]
        return hmac.compare_digest(found, self.line(body))

    @cached_property
    def _secret(self) -> bytes | None:
        return _read_secret(self.folder / "seal")

    def _make_secret(self) -> bytes:
        path = self.folder / "seal"
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            made = self.folder / f".seal-{os.getpid()}-{os.urandom(4).hex()}"
            handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                os.write(handle, os.urandom(_SECRET_BYTES))
                with suppress(FileExistsError):  # another build was first: its secret counts
                    os.link(made, path)
            finally:
                os.close(handle)
                os.unlink(made)
        except OSError as error:
            raise UserError(
                f"the key that seals your results cannot be kept at {path} ({error.strerror}): the next build could "
                "not tell them from anybody's",
                f"{VARIABLE}= a folder that you can write to",
            ) from error
        secret = _read_secret(path)
        if secret is None:
            raise UserError(f"{path} holds no {_SECRET_BYTES} bytes: it is not the key that it should be", "remove it")
        self._secret = secret
        return secret


def _read_secret(path: Path) -> bytes | None:
    """None where there is none yet."""
    try:
        secret = read_whole(path)
    except OSError:
        return None
    return secret if len(secret) == _SECRET_BYTES else None
