"""`build why` in words."""

from __future__ import annotations

from llm_build.cli.why import format_difference
from llm_build.core.reason import Difference


def described(*fields: str) -> str:
    return format_difference(Difference(*fields))


def test_code_is_named_and_digests_are_cut():
    one, two = "sha256:" + "1" * 64, "blake3:" + "2" * 64
    assert (
        format_difference(Difference("code.llm_build/models/llama.py", one, two, ""))
        == "llm_build/models/llama.py was changed"
    )
    assert described("code.llm_build/models/new.py", "", two, "") == "llm_build/models/new.py was added"
    assert (
        format_difference(Difference("code.llm_build/models/old.py", one, "", ""))
        == "llm_build/models/old.py was removed"
    )
    assert (
        format_difference(Difference("inputs.a", one, two, "")) == "inputs.a: sha256:111111111111 → blake3:222222222222"
    )
    assert described("fast", "", "true", "") == "fast: absent → true"
