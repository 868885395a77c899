"""Tests that send signals do so under nohup too, and in the background of a shell."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

CHILD = "import signal; print([signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGINT)])"
PARENT = f"""
import os, signal, subprocess, sys
for number in (signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
from tests.conftest import stop_ignoring_signals
stop_ignoring_signals()
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True)
os.kill(os.getpid(), signal.SIGHUP)
print("alive", flush=True)
"""


def test_children_do_not_inherit_what_the_run_was_started_to_ignore():
    done = subprocess.run([sys.executable, "-c", PARENT], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[True, True]", "[False, False]", "alive"]
