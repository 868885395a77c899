"""What store.remote may be, and what becomes of secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_build.core.errors import UserError
from llm_build.remote.bucket import Bucket
from llm_build.remote.location import Location
from llm_build.remote.store import open_shared


@pytest.mark.parametrize(
    ("location", "said", "hint"),
    [
        (Location("/nfs/models"), "expected a URL that fsspec knows", "store.remote=file:///nfs/models"),
        (Location("sftp://me:pass@host/x"), "found a password in the URL", "store.remote_options.password=env:NAME"),
        (
            Location("s3://b", options={"secret": "x"}),
            "store.remote_options.secret: found a secret in clear",
            "env:NAME",
        ),
        (
            Location("s3://b", options={"client_kwargs": {"aws_secret_access_key": "x"}}),
            "store.remote_options.client_kwargs.aws_secret_access_key: found a secret",
            "let the store's own client find its credentials",
        ),
    ],
)
def test_refused(location: Location, said: str, hint: str, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        open_shared(tmp_path, location)
    assert said in caught.value.message
    assert hint in caught.value.hint
    assert "pass" not in caught.value.message.replace("password", "")


@pytest.mark.parametrize(
    ("location", "said", "hint"),
    [
        (Location("nonsense://x"), "store.remote=nonsense://x with store.remote_options []", "docs/guides/store.md"),
        (Location("gs://bucket/x"), "needs a package that is not installed", "gcsfs"),
        (Location("file:///x", options={"auto_mkdir": "env:THERE_IS_NONE"}), "THERE_IS_NONE", "export THERE_IS_NONE"),
    ],
)
def test_refused_when_it_is_needed(location: Location, said: str, hint: str, tmp_path: Path):
    store = open_shared(tmp_path, location)
    with pytest.raises(UserError) as caught:
        store.request_remote("0" * 64)
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_a_secret_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_SECRET", "hush")
    location = Location("s3://bucket/x", options={"secret": "env:MY_SECRET", "key": "k"})
    store = open_shared(tmp_path, location)
    assert "hush" not in repr(store.location)
    assert Bucket(location)._fs.secret == "hush"
