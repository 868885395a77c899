"""build.json.sig: build.json in a DSSE envelope, signed with an ed25519 key. Needs the package cryptography.

Envelope, its encoding and its test vectors: https://github.com/secure-systems-lab/dsse; the payload type is that of
in-toto (https://github.com/in-toto/attestation/blob/main/spec/v1/envelope.md). An ed25519 signature of the same bytes
is always the same (RFC 8032), so signing a build twice gives one file.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llm_build.core.digest import sha256_hex
from llm_build.core.errors import StepError, UserError
from llm_build.core.examine import signature as state_of_file
from llm_build.core.json_text import parse_json
from llm_build.core.small_file import read_small
from llm_build.core.store import Store
from llm_build.provenance.statement import NAME, SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_KNOWN = (
    "cache/keys"  # {path of a private key: [state of the file, key id]}, so that a build with nothing to do loads none
)
MAKE = "openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"


def pre_authentication(kind: str, payload: bytes) -> bytes:
    """What is signed: DSSE's PAE(type, body)."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def key_id(key: Path, store: Store) -> str:
    """sha256 of the public key (DER) of a private key's file. Raises UserError for what is no ed25519 key."""
    known = store.load_document(_KNOWN) or {}
    try:
        state = state_of_file("provenance.key", str(key))
    except UserError as error:
        raise UserError(f"provenance.key={key}: no such file can be read", MAKE) from error
    if known.get(str(key), [None])[0] != state:
        known = {**known, str(key): [state, _id_of(_load_private(key).public_key())]}
        store.save_document(_KNOWN, known)
    return str(known[str(key)][1])


def keep_signed(folder: Path, key: Path | None, store: Store) -> None:
    """Makes build.json.sig speak of the build.json beside it, signed by ``key``; without a key, removes one that speaks
    of an earlier one. Touches nothing when it is right."""
    payload, path = (folder / NAME).read_bytes(), folder / SIGNATURE
    signed, by = _signed_by(path)
    if key is None:
        if signed != payload:
            path.unlink(missing_ok=True)
        return
    if (signed, by) == (payload, key_id(key, store)):
        return
    private = _load_private(key)
    signature = private.sign(pre_authentication(_PAYLOAD_TYPE, payload))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": _PAYLOAD_TYPE,
        "signatures": [{"keyid": _id_of(private.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    fresh = folder / f".{SIGNATURE}"
    fresh.write_text(json.dumps(envelope, indent=1) + "\n")
    fresh.replace(path)


def _signed_by(path: Path) -> tuple[bytes, str]:
    """The payload of an envelope and the id of the key that it names, unchecked; (b"", "") where there is none."""
    try:
        payload, ((by, _),) = _opened(path)
    except (OSError, ValueError, StepError):
        return b"", ""
    return payload, by


def _opened(path: Path) -> tuple[bytes, list[tuple[str, bytes]]]:
    """(payload, [(key id, signature)]) of an envelope. Raises StepError for what is none of a statement."""
    try:
        envelope = parse_json(read_small(path))
        if envelope["payloadType"] != _PAYLOAD_TYPE:
            raise ValueError(f"payloadType {envelope['payloadType']!r}")
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [(s.get("keyid", ""), base64.b64decode(s["sig"], validate=True)) for s in envelope["signatures"]]
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise StepError(f"{path} is no DSSE envelope of a statement: {error}", "build provenance.key=...") from error
    return payload, signatures


def check_signature(folder: Path, public: Path) -> str:
    """The id of the key that signed the build.json of a folder, which is ``public``. Raises StepError when it is not,
    UserError when ``public`` is no such key."""
    from cryptography.exceptions import InvalidSignature

    key, path = _load_public(public), folder / SIGNATURE
    if not path.is_file():
        raise StepError(f"{folder} is not signed: it has no {SIGNATURE}", "build provenance.key=... signs it")
    payload, signatures = _opened(path)
    if payload != read_small(folder / NAME):
        raise StepError(
            f"{path} signs another {NAME} than the one beside it", "build it again, or take it from elsewhere"
        )
    wanted = _id_of(key)
    for _, signature in signatures:  # a key id is a hint and proves nothing
        try:
            key.verify(signature, pre_authentication(_PAYLOAD_TYPE, payload))
            return wanted
        except InvalidSignature:
            continue
    by = ", ".join(name for name, _ in signatures) or "nobody"
    problem = "the signature is false" if by == wanted else f"signed by another key: {by}"
    raise StepError(f"{path}: {problem}; {public} is key {wanted}", "ask whoever built it for the public key")


def _load_private(path: Path) -> Ed25519PrivateKey:
    serialization, ed25519 = cryptography()
    try:
        key: Any = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise UserError(f"provenance.key={path}: cannot be read: {error.strerror}", MAKE) from error
    except (ValueError, TypeError) as error:
        raise UserError(f"provenance.key={path}: no private key in PEM without a password: {error}", MAKE) from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise UserError(f"provenance.key={path}: {type(key).__name__}; allowed: ed25519", MAKE)
    return cast("Ed25519PrivateKey", key)


def _load_public(path: Path) -> Ed25519PublicKey:
    serialization, ed25519 = cryptography()
    try:
        key: Any = serialization.load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise UserError(f"--key {path}: cannot be read: {error.strerror}", "--key public.pem") from error
    except ValueError as error:
        raise UserError(f"--key {path}: no public key in PEM", f"openssl pkey -in {path} -pubout") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise UserError(f"--key {path}: {type(key).__name__}; allowed: ed25519", MAKE)
    return cast("Ed25519PublicKey", key)


def _id_of(key: Ed25519PublicKey) -> str:
    serialization, _ = cryptography()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return sha256_hex(key.public_bytes(serialization.Encoding.DER, form))


def cryptography() -> tuple[Any, Any]:
    """The two modules of the package that are used. Raises UserError when it is not installed."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise UserError("signatures need the package cryptography", "pip install 'llm-build[sign]'") from error
    return serialization, ed25519
