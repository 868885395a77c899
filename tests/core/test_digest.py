"""Digests and canonical JSON: what keys rest on must never move."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_build.core import digest

EMPTY_BLAKE3 = "blake3:af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_canonical_form_is_pinned() -> None:
    value = {"b": [1, 1.5, True, None], "a": {"é": "\n→"}, "": ""}
    assert digest.canonical(value) == b'{"":"","a":{"\\u00e9":"\\n\\u2192"},"b":[1,1.5,true,null]}'
    assert digest.sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_numbers_that_json_cannot_say_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest.canonical(value)


@given(st.dictionaries(st.text(), values))
def test_order_of_keys_does_not_matter(value: dict[str, object]) -> None:
    assert digest.canonical(value) == digest.canonical(dict(reversed(value.items())))


@given(values, values)
def test_different_values_differ(one: object, other: object) -> None:
    same = digest.canonical(one) == digest.canonical(other)
    assert same == (repr(_sorted(one)) == repr(_sorted(other)))


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return ("object", [(key, _sorted(value[key])) for key in sorted(value)])
    return [_sorted(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("nbytes", [0, 1, digest.CHUNK_BYTES + 1, digest.MMAP_FROM_BYTES, digest.MMAP_FROM_BYTES + 1])
@pytest.mark.parametrize("threads", [0, 1])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, nbytes: int, threads: int) -> None:
    data = bytes(range(256)) * (nbytes // 256) + b"x" * (nbytes % 256)
    (tmp_path / "file").write_bytes(data)
    found = digest.digest_of_file(tmp_path / "file", threads)
    assert found == digest.digest_of_bytes(data)
    assert (found == EMPTY_BLAKE3) == (nbytes == 0)


def test_a_group_is_its_names_and_contents() -> None:
    group = digest.digest_of_names({"a": "1", "b": "2"})
    assert group == digest.digest_of_names({"b": "2", "a": "1"})
    assert len({group, digest.digest_of_names({"a": "2", "b": "1"}), digest.digest_of_names({"a": "1"})}) == 3
