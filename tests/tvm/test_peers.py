"""What sums of several GPUs go through, as far as that is known without one."""

from __future__ import annotations

import pytest

from llm_build.core.errors import StepError
from llm_build.runtime.peers import SWITCH, Peers


def test_the_environment_leaves_all_sums_to_nccl(monkeypatch: pytest.MonkeyPatch):
    """Every rank has the same environment, so none may wait for another one's handles."""
    monkeypatch.setenv(SWITCH, "0")

    def exchange(name: str, own: bytes) -> list[bytes]:
        raise AssertionError(f"{name} was exchanged")

    with pytest.raises(StepError, match="LLM_BUILD_PEERS=0"):
        Peers(None, 0, 2, exchange)  # type: ignore[arg-type]
