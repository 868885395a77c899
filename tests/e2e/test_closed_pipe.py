"""A command whose output nobody reads (`build list | head`) ends quietly, whatever it was going to print."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from llm_build.cli.commands import COMMANDS
from tests.conftest import Shell

LINES = {  # of the others the name alone
    "build": ["build", "--debug"], "plan": ["plan", "model.context_window_size=64"], "why": ["why", "lower"],
    "generate": ["generate", "The", "--max-tokens=2"], "diff": ["diff", "quant=q0f16", "quant=q0f32"],
    "verify-provenance": ["verify-provenance", "dist"],
}  # fmt: skip
OTHERS = (["--info"], ["--cfg", "job"], ["--hydra-help"], ["--version"], ["-sc", "install=fish"], ["quant=nothing"],
          ["plan", "-m", "quant=q4f16_1,q8f16_1"], ["plan", "--json"], ["dist.path=new", "store.path=new"])  # fmt: skip


@pytest.mark.parametrize("words", [*(LINES.get(name, [name]) for name in COMMANDS), *OTHERS], ids=" ".join)
def test_a_closed_pipe_is_no_error(demo: Shell, words: list[str]):
    if words == ["bench"]:
        demo.run(*words)  # so that what is printed is the table
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "llm_build", *words]
    done = subprocess.run(
        command, cwd=demo.folder, env=demo.environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    os.close(write)
    assert "BrokenPipe" not in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 3
    assert done.returncode in (0, 2, 141)
