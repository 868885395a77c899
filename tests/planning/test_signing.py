"""build.json.sig: who signed it, and each way in which it can be false."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from llm_build.core.errors import StepError, UserError
from llm_build.provenance import signing
from tests.core.memory_store import MemoryStore

STORE = MemoryStore()
PEM = serialization.Encoding.PEM
PRIVATE = (PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
PUBLIC = (PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def key_pair(folder: Path, name: str = "key") -> tuple[Path, Path]:
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(*PRIVATE))
    public.write_bytes(key.public_key().public_bytes(*PUBLIC))
    return private, public


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "dist"
    folder.mkdir()
    (folder / "build.json").write_text('{"a": 1}\n')
    return folder


def test_what_is_signed_is_as_dsse_defines_it():
    """The example of https://github.com/secure-systems-lab/dsse/blob/master/protocol.md"""
    signed = signing.pre_authentication("http://example.com/HelloWorld", b"hello world")
    assert signed == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_a_signature_holds_and_is_always_the_same(built: Path, tmp_path: Path):
    private, public = key_pair(tmp_path)
    signing.keep_signed(built, private, STORE)
    first = (built / "build.json.sig").read_bytes()
    assert signing.check_signature(built, public) == signing.key_id(private, STORE)
    state = (built / "build.json.sig").stat().st_mtime_ns
    signing.keep_signed(built, private, STORE)
    assert (built / "build.json.sig").stat().st_mtime_ns == state
    (built / "build.json.sig").write_text("cut off")
    signing.keep_signed(built, private, MemoryStore())
    assert (built / "build.json.sig").read_bytes() == first
    assert {f.name for f in built.iterdir()} == {"build.json", "build.json.sig"}


def test_openssl_makes_the_keys_and_agrees(built: Path, tmp_path: Path):
    if not (openssl := shutil.which("openssl")):
        pytest.skip("no openssl")
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    for command in signing.MAKE.split("; "):
        subprocess.run([openssl, *command.split()[1:]], cwd=tmp_path, check=True)
    signing.keep_signed(built, private, STORE)
    signing.check_signature(built, public)
    envelope = json.loads((built / "build.json.sig").read_text())
    payload = base64.b64decode(envelope["payload"])
    assert payload == (built / "build.json").read_bytes()
    (tmp_path / "signed").write_bytes(signing.pre_authentication(envelope["payloadType"], payload))
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    verify = ["pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", "signed", "-sigfile", "sig"]
    subprocess.run([openssl, *verify], cwd=tmp_path, check=True)


def test_false_signatures_are_named(built: Path, tmp_path: Path):
    private, public = key_pair(tmp_path)
    with pytest.raises(StepError, match=r"dist is not signed: it has no build.json.sig"):
        signing.check_signature(built, public)
    signing.keep_signed(built, private, STORE)
    _, another = key_pair(tmp_path, "another")
    with pytest.raises(StepError, match=f"signed by another key: {signing.key_id(private, STORE)}"):
        signing.check_signature(built, another)
    envelope = json.loads((built / "build.json.sig").read_text())

    def with_envelope(**changed: object) -> None:
        (built / "build.json.sig").write_text(json.dumps({**envelope, **changed}))

    sig = {**envelope["signatures"][0], "sig": base64.b64encode(bytes(64)).decode()}
    with_envelope(signatures=[sig])
    with pytest.raises(StepError, match="the signature is false"):
        signing.check_signature(built, public)
    with_envelope(signatures=[sig, *envelope["signatures"]])  # one good one is enough
    signing.check_signature(built, public)
    with_envelope(signatures=[])
    with pytest.raises(StepError, match="signed by another key: nobody"):
        signing.check_signature(built, public)
    for false in ({"payloadType": "text"}, {"payload": "???"}, {"signatures": [{}]}, {"signatures": 5}):
        with_envelope(**false)
        with pytest.raises(StepError, match="is no DSSE envelope of a statement"):
            signing.check_signature(built, public)
    with_envelope()
    (built / "build.json").write_text('{"a": 2}\n')
    with pytest.raises(StepError, match=r"signs another build.json than the one beside it"):
        signing.check_signature(built, public)


def test_a_signature_of_an_earlier_build_goes_and_a_good_one_stays(built: Path, tmp_path: Path):
    private, _ = key_pair(tmp_path)
    signing.keep_signed(built, None, STORE)
    signing.keep_signed(built, private, STORE)
    signing.keep_signed(built, None, STORE)
    assert (built / "build.json.sig").is_file()
    (built / "build.json").write_text('{"a": 2}\n')
    signing.keep_signed(built, None, STORE)
    assert not (built / "build.json.sig").exists()


def test_another_key_signs_anew(built: Path, tmp_path: Path):
    signing.keep_signed(built, key_pair(tmp_path)[0], STORE)
    private, public = key_pair(tmp_path)  # in the same file
    signing.keep_signed(built, private, STORE)
    signing.check_signature(built, public)


def test_what_is_no_key_is_refused_with_how_to_make_one(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    private, public = key_pair(tmp_path)
    rsa_key = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    (tmp_path / "rsa.pem").write_bytes(rsa_key.private_bytes(*PRIVATE))
    (tmp_path / "rsa.pub").write_bytes(rsa_key.public_key().public_bytes(*PUBLIC))
    for name, said in (("gone", "no such file"), ("key.pub", "no private key in PEM"), ("rsa.pem", "allowed: ed25519")):
        with pytest.raises(UserError, match=said) as caught:
            signing.key_id(tmp_path / name, STORE)
        assert "openssl genpkey -algorithm ed25519" in caught.value.hint
    signing.keep_signed(built, private, STORE)
    for name, said in (
        ("gone", "cannot be read"),
        ("key.pem", "no public key in PEM"),
        ("rsa.pub", "allowed: ed25519"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            signing.check_signature(built, tmp_path / name)
        assert caught.value.hint
    monkeypatch.setitem(__import__("sys").modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(UserError, match="need the package cryptography") as caught:
        signing.check_signature(built, public)
    assert caught.value.hint == "pip install 'llm-build[sign]'"
