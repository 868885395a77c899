"""Signatures under the records of a shared store: ed25519 (RFC 8032). Needs the package cryptography where there are
keys, and nothing where there are none. core/seals says where keys lie."""

from __future__ import annotations

import base64
import binascii
from functools import lru_cache
from pathlib import Path
from typing import Any

from llm_build.core.disk import read_whole
from llm_build.core.errors import UserError
from llm_build.core.record import Record
from llm_build.core.seals import Seals

_ED25519 = b'"ed25519:'
_PURPOSE = b"llm-build record\n"  # before what is signed: a key may sign other things too


def signature_line(body: bytes, folder: Path) -> bytes:
    """The line of this user's signing key for a record's first line; empty where there is no key."""
    path = folder / "sign.pem"
    if not path.exists():
        return b""
    return _ED25519 + base64.b64encode(_private_key(path).sign(_PURPOSE + body)) + b'"\n'


def accepts(seals: Seals, raw: bytes, record: Record) -> bool:
    """Whether a manifest of a shared store is this user's, or signed by a key that this user trusts."""
    if seals.accepts(raw, record):
        return True
    if seals.trust != "signed" or record.key in seals.expected:
        return False
    body, *lines = raw.split(b"\n")
    found = [line[len(_ED25519) : -1] for line in lines if line.startswith(_ED25519)]
    return bool(found) and any(_verifies(key, each, body) for key in _trusted_keys(seals.folder) for each in found)


def _verifies(key: Any, signature: bytes, body: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(base64.b64decode(signature, validate=True), _PURPOSE + body)
    except (InvalidSignature, binascii.Error):
        return False
    return True


@lru_cache(maxsize=4)
def _private_key(path: Path) -> Any:
    """UserError for a file that holds none."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_whole(path), None)
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: no private key (PEM, without a password): {error}", "remove it") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(f"{path}: a key of another kind; allowed: ed25519", "remove it")
    return key


def _trusted_keys(folder: Path) -> list[Any]:
    """The public keys in trusted/. UserError for a file that holds none."""
    return [_public_key(file) for file in sorted((folder / "trusted").glob("*.pem"))]


@lru_cache(maxsize=64)
def _public_key(path: Path) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(read_whole(path))
    except ValueError as error:
        raise UserError(f"{path}: no public key (PEM): {error}", "remove it") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UserError(f"{path}: a key of another kind; allowed: ed25519", "remove it")
    return key
