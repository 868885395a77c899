"""Libraries for 2 and 4 ranks on this CPU, through gloo: the logits of transformers, and what is said when a rank
goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llm_build.core.errors import StepError, UserError
from llm_build.runtime import ranks
from llm_build.runtime.ranks import RankedModel, start_ranks
from llm_build.targets.tvm_import import import_tvm

import_tvm()  # with the compiler, before anything loads only its runtime

from tests.ranks import cells  # noqa: E402
from tests.tvm import family_line  # noqa: E402

TWO = (("llama", "q4f16_1"), ("gpt_neox", "q8f16_1"), ("mixtral", "q0f32"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankedModel]:
    group = cells.processes_of(2, tmp_path_factory.mktemp("none"))
    yield group
    group.close()


def agrees(built: cells.Ranked) -> None:
    found = family_line.errors(built, cells.SIZES["vocab_size"])
    print({path: f"{error:.1e}" for path, error in found.items()})
    assert max(found.values()) < cells.ROUNDING, found


@pytest.mark.parametrize(("family", "scheme"), TWO)
def test_two_ranks_agree_with_transformers(family: str, scheme: str, pair: RankedModel, tmp_path: Path):
    built = cells.build(tmp_path, family, scheme, 2, pair)
    agrees(built)


def test_four_ranks_share_key_heads_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two key heads: each on two ranks. Biases of q, k, v are cut. Tokens come through the mailbox, as on GPUs, and
    messages through pipes between them in their turn, also for a rank that is late; then a rank is killed."""
    monkeypatch.setattr(ranks, "module", lambda: "tests.ranks.late")
    monkeypatch.setattr(ranks, "kind_of", lambda _library: "cuda")
    monkeypatch.setattr(ranks, "SPIN_S", 5.0)
    monkeypatch.setattr(ranks, "ORDERED", True)
    built = cells.build(tmp_path, "qwen2", "q0f32", 4)
    engine = built.engine()
    assert isinstance(engine._model, RankedModel)
    tokens = list(range(20, 60))
    expected = built.expected(tokens)
    sequence = engine.add_sequence()
    found = [engine.prefill(sequence, tokens[:30]), *(engine.decode(sequence, token) for token in tokens[30:])]
    assert np.abs(np.stack(found) - expected[29:]).max() / expected.std() < cells.ROUNDING
    assert engine._model._token_s < ranks.SPIN_S
    for length in (33, 36, 31):
        engine.rewind(sequence, engine.length(sequence) - length)
        again = np.stack([engine.decode(sequence, token) for token in tokens[length:]])
        assert np.abs(again - expected[length:]).max() / expected.std() < cells.ROUNDING
    pids = engine._model.pids
    os.kill(pids[2], signal.SIGKILL)
    started = time.monotonic()
    with pytest.raises(StepError, match=r"rank 2 of 4 was killed by SIGKILL while it computed"):
        [engine.decode(sequence, 5) for _ in range(100)]
    assert time.monotonic() - started < 10
    assert not any(running(pid) for pid in pids)
    engine.remove_sequence(sequence)  # as a generation does that was cut short
    with pytest.raises(StepError, match="the ranks of this model have ended"):
        engine.add_sequence()


def running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_ranks_end_when_the_process_that_started_them_is_killed(tmp_path: Path):
    """Which happens before they can know of each other: nothing but a pipe says so. Their folder goes with them."""
    (tmp_path / "temporary").mkdir()
    library = tmp_path / "library.so"
    library.write_bytes(b'{"tensor_parallel_shards": 2}')
    code = (
        "import sys, time, tempfile; from pathlib import Path; from llm_build.runtime import ranks\n"
        f"tempfile.tempdir = {str(tmp_path / 'temporary')!r}\n"
        f"ranks.RankedModel.meet = lambda self: print(*self.pids, flush=True) or time.sleep(60)\n"
        f"ranks.start_ranks(2, Path({str(library)!r}))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True) as parent:
        assert parent.stdout
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    until = time.monotonic() + 10
    while any(map(running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(running, pids))
    assert not list((tmp_path / "temporary").iterdir())


def test_a_rank_that_does_not_come_is_not_waited_for_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = tmp_path / "library.so"
    library.write_bytes(b'{"tensor_parallel_shards": 2}')
    monkeypatch.setattr(ranks, "MEET_S", 1.0)
    monkeypatch.setattr(ranks, "module", lambda: "llm_build.runtime.nowhere")
    with pytest.raises(StepError, match=r"(?s)rank \d of 2 ended with exit code 1 while it waited.*No module named"):
        start_ranks(2, library)
    monkeypatch.setattr(ranks, "module", lambda: "tests.ranks.silent")
    with pytest.raises(StepError, match=r"(?s)rank 0, 1 of 2 gave no answer in 1 s.*silent\.py"):
        start_ranks(2, library)


def test_what_a_rank_cannot_load_is_said_once(pair: RankedModel, tmp_path: Path):
    """Last of those that use these processes: an error ends them."""
    (tmp_path / "library.so").write_bytes(b"text")
    with pytest.raises(UserError, match=r"library\.so cannot be loaded with apache-tvm"):
        pair.load({"library.so": tmp_path / "library.so"}, None)
    assert not any(running(pid) for pid in pair.pids)
