"""One minute of fuzzing; and that the fuzzer sees what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from llm_build.core.errors import StepError, UserError
from tests.conftest import ROOT
from tests.fuzz.__main__ import cases_of
from tests.fuzz.cases import Identity
from tests.fuzz.kinds import Case, Kind
from tests.fuzz.rules import CANARY


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: workers are forked, and this one has threads."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tools" / "path"), str(ROOT)])}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 400}
    return subprocess.run([sys.executable, *words], check=False, cwd=ROOT, env=environment, **options)


def test_a_minute_of_all_kinds():
    done = python("-m", "tests.fuzz", "--minutes", "1", "--jobs", "2")
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5000:]
    rows = [line.split() for line in done.stdout.splitlines()]
    tried = {row[0]: int(row[1]) for row in rows if row and row[0] in KINDS}
    assert set(tried) == KINDS, "each kind was tried"
    assert all(tried.values())


KINDS = {
    "safetensors", "index", "bin", "config", "quantized", "tokenizer", "generation", "template", "vocabulary", "plan",
    "conf", "lock", "provenance", "folder", "pull", "caches", "store", "remote",
}  # fmt: skip


def fine(rng: Random, case: Case) -> int:
    (case / "own").write_text("x")
    return 2


def refuses(rng: Random, case: Case) -> None:
    raise UserError("x: found 1; allowed: 2")


def fails(rng: Random, case: Case) -> None:
    raise StepError("x")


def raises(rng: Random, case: Case) -> None:
    raise KeyError("x")


def prints_a_trace(rng: Random, case: Case) -> None:
    raise StepError("x\nTraceback (most recent call last):\n  File x")


def ends_with_another_code(rng: Random, case: Case) -> int:
    return 3


def runs_a_command(rng: Random, case: Case) -> None:
    os.system(f"touch {CANARY}")


def runs_a_program(rng: Random, case: Case) -> None:
    subprocess.run(["true"], check=False)


def loads_code(rng: Random, case: Case) -> None:
    (case / "evil.py").write_text("x = 1")
    exec(compile((case / "evil.py").read_text(), str(case / "evil.py"), "exec"))


def loads_a_library(rng: Random, case: Case) -> None:
    import ctypes

    (case / "evil.so").write_bytes(b"no library")
    try:
        ctypes.CDLL(str(case / "evil.so"))
    except OSError as error:
        raise UserError("x") from error


def writes_outside(rng: Random, case: Case) -> None:
    (case.parents[2] / "outside").write_text("x")


def removes_outside(rng: Random, case: Case) -> None:
    (case.parents[2] / "outside").unlink(missing_ok=True)


def asks_the_network(rng: Random, case: Case) -> None:
    import socket

    with socket.socket() as end:
        end.connect_ex(("127.0.0.1", 1))


def takes_memory(rng: Random, case: Case) -> None:
    assert b"x" * (200 << 20)


def takes_more_memory_than_there_is(rng: Random, case: Case) -> None:
    assert b"x" * (1 << 40)


def dies(rng: Random, case: Case) -> None:
    os._exit(7)


BREACHES: dict[Callable[[Random, Case], Any], str] = {
    fine: "", refuses: "", fails: "", raises: "KeyError", prints_a_trace: "Traceback", ends_with_another_code: "code 3",
    runs_a_command: "os.system", runs_a_program: "runs", loads_code: "evil.py", loads_a_library: "loads",
    writes_outside: "writes", removes_outside: "os.remove", asks_the_network: "socket.connect", takes_memory: "GB",
    takes_more_memory_than_there_is: "MemoryError",
    dies: "ended with 7",
}  # fmt: skip


def test_each_rule_is_seen_to_be_broken(tmp_path: Path):
    done = python("-c", f"from tests.fuzz.test_fuzz import judge; judge({str(tmp_path / 'run')!r})")
    assert done.returncode == 0, done.stderr
    found = dict(line.split("\t", 1) for line in done.stdout.splitlines())
    for read, breach in BREACHES.items():
        assert breach in found[read.__name__], read.__name__
        assert bool(breach) == bool(found[read.__name__]), found[read.__name__]
    for name in ("dies", "raises"):
        assert (tmp_path / "run" / "failed" / f"{name}-0-0").is_dir(), "what failed is kept"


def judge(folder: str, reads: Iterable[Callable[[Random, Case], Any]] = ()) -> None:
    """Prints what was found of each, a line each."""
    from tests.fuzz import cases
    from tests.fuzz.workers import Pool

    cases.MEMORY_BYTES = 100 << 20
    root = Path(folder)
    (root / "samples").mkdir(parents=True)
    (root / "keys").mkdir()
    kinds = {read.__name__: Kind(read.__name__, lambda *_: None, read, 1) for read in reads or BREACHES}
    pool = Pool(kinds, root, 1)
    for case, verdict in pool.run(Identity(name, 0, 0) for name in kinds):
        print(case.kind, " ".join(verdict.breach.split()), sep="\t", flush=True)
    pool.stop()


def waits(rng: Random, case: Case) -> None:
    os.mkfifo("pipe")
    Path("pipe").read_bytes()


def test_what_hangs_is_ended(tmp_path: Path):
    """And says where it was."""
    run = f"test_fuzz.judge({str(tmp_path / 'run')!r}, [test_fuzz.waits])"
    done = python(
        "-c", f"from tests.fuzz import workers, test_fuzz; workers.WALL_SECONDS = workers.IDLE_SECONDS = 1.0; {run}"
    )
    assert "and it waits" in done.stdout, done.stderr
    assert "in waits" in done.stdout


def test_a_case_follows_from_its_identity(tmp_path: Path):
    from tests.fuzz.values import changed, to_json

    good = {"a": [1, {"b": "c"}], "d": 2.5, "e": None}

    def made(number: int) -> list[bytes]:
        rng = Random(f"x/0/{number}")
        return [to_json(rng, changed(rng, good)) for _ in range(20)]

    assert made(1) == made(1)
    assert made(1) != made(2)
    kinds = [Kind(name, lambda *_: None, lambda *_: None, share) for name, share in (("a", 3), ("b", 1))]
    cases = cases_of(kinds, 5)
    first = [next(cases) for _ in range(8)]
    assert [case.kind for case in first] == ["a", "b", "a", "a", "a", "b", "a", "a"]
    assert first[4] == Identity("a", 5, 3)
