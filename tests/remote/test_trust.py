"""A shared store between two users: what one made, the other uses if it is signed by a key that the other trusts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.conftest import Shell

WORDS = ("verify=off", "quant=q0f16")


@dataclass(frozen=True)
class User(Shell):
    keys: Path

    def environment(self) -> dict[str, str]:
        return {**super().environment(), "LLM_BUILD_KEYS": str(self.keys)}


def user(tmp_path: Path, name: str) -> User:
    (tmp_path / name / "work").mkdir(parents=True)
    return User(tmp_path / name / "work", tmp_path / name / "store", tmp_path / name / "keys")


def sign(maker: User, trusted_by: User) -> None:
    key = Ed25519PrivateKey.generate()
    maker.keys.mkdir(exist_ok=True)
    (maker.keys / "sign.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (trusted_by.keys / "trusted").mkdir(parents=True, exist_ok=True)
    (trusted_by.keys / "trusted" / "maker.pem").write_bytes(public)


@pytest.mark.parametrize("signed", [False, True])
def test_results_of_another_user(signed: bool, tmp_path: Path) -> None:
    maker, other = user(tmp_path, "maker"), user(tmp_path, "other")
    if signed:
        sign(maker, other)
    remote = f"store.remote=file://{tmp_path}/remote"
    maker.run("build", *WORDS, remote)
    planned = other.statuses("plan", *WORDS, remote)
    assert planned["lower"] == ("fresh" if signed else "stale")
    done = other.run("pull", *WORDS, remote, code=0 if signed else 1)
    assert ("nor signed by a key that you trust" in " ".join(done.stderr.split())) == (not signed)
    assert (other.folder / "dist").exists() == signed
    if not signed:
        other.run("pull", *WORDS, remote, "store.trust=all")
        assert other.ran("build", *WORDS) == set(), "what was taken is sealed by who took it"


def test_a_lock_file_is_trust_enough_for_what_it_names(tmp_path: Path) -> None:
    maker, other = user(tmp_path, "maker"), user(tmp_path, "other")
    remote = f"store.remote=file://{tmp_path}/remote"
    maker.run("lock", "recipe=demo", *WORDS, remote)
    (other.folder / "recipes").mkdir()
    shutil.copy(maker.folder / "recipes" / "demo.lock.yaml", other.folder / "recipes")
    other.run("pull", "--locked", "recipe=demo", *WORDS, remote)
    assert list((other.folder / "dist").glob("*/*.so"))
