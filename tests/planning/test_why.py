"""`build why` in words."""

from __future__ import annotations

from builder.cli.why import told
from builder.core.reason import Difference


def test_code_is_named_and_digests_are_cut():
    one, two = "sha256:" + "1" * 64, "blake3:" + "2" * 64
    assert told(Difference("code.builder/models/llama.py", one, two, "")) == "builder/models/llama.py was changed"
    assert told(Difference("code.builder/models/new.py", "", two, "")) == "builder/models/new.py was added"
    assert told(Difference("code.builder/models/old.py", one, "", "")) == "builder/models/old.py was removed"
    assert told(Difference("inputs.a", one, two, "")) == "inputs.a: sha256:111111111111 → blake3:222222222222"
    assert told(Difference("fast", "", "true", "")) == "fast: absent → true"
