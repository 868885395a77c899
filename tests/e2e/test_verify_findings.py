"""What verify measures and says, on an engine that looks its logits up, right or with one fault."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.core.errors import StepError
from llm_build.steps import verify
from llm_build.verification import measure, paths
from llm_build.verification.limits import COST, stated_limits, with_rounding
from llm_build.verification.results import VerifyResult, check_limits
from tests.weights.weights_line import FolderOut

LIMITS = {
    "max_error": 1.0, "rms_error": 0.2, "kl": 0.05, "top1": 0.8, "perplexity": 1.1, "exact_max": 1e-4, "exact_rms": 1e-5
}  # fmt: skip
SHAPE = (3, 40, 50)
Fault = Callable[["Table", str, int, np.ndarray], np.ndarray]


@dataclass
class Table:
    """An engine: the logits of a window's position are a row of ``logits`` [N, W, V]. ``fault`` may spoil them."""

    tokens: np.ndarray
    table: np.ndarray
    fault: Fault = lambda engine, call, position, row: row
    metadata: Mapping[str, Any] = field(default_factory=lambda: {"max_batch_size": 4, "prefill_chunk_size": 24})
    live: dict[int, list[int]] = field(default_factory=dict)
    born: int = 0

    @property
    def vocab_size(self) -> int:
        return self.table.shape[2]

    def add_sequence(self) -> int:
        self.born += 1
        self.live[self.born] = []
        return self.born

    def remove_sequence(self, seq: int) -> None:
        del self.live[seq]

    def _rows(self, call: str, seq: int, tokens: Sequence[int]) -> np.ndarray:
        start = len(self.live[seq])
        self.live[seq] += tokens
        seen = self.live[seq]
        (window,) = [n for n in range(len(self.tokens)) if self.tokens[n, : len(seen)].tolist() == seen]
        rows = [self.fault(self, call, i, self.table[window, i].copy()) for i in range(start, len(seen))]
        return np.stack(rows).astype(np.float32)

    def prefill(self, seq: int, tokens: Sequence[int]) -> np.ndarray:
        return self._rows("prefill", seq, tokens)[-1]

    def logits(self, seq: int, tokens: Sequence[int]) -> np.ndarray:
        return self._rows("logits" if not self.live[seq] else "continued", seq, tokens)

    def decode(self, seq: int, token: int) -> np.ndarray:
        return self._rows("decode", seq, [token])[0]

    def decode_batch(self, seqs: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        return np.stack([self._rows("batch", seq, [token])[0] for seq, token in zip(seqs, tokens, strict=True)])


def findings(tmp_path: Path, fault: Fault | None = None, scheme_noise: float = 0.05, **changes: Any) -> VerifyResult:
    """Verify a model whose scheme moves each logit by about ``scheme_noise`` spreads."""
    rng = np.random.default_rng(1)
    stored = (rng.standard_normal(SHAPE) * 3).astype(np.float32)
    original = stored + rng.standard_normal(SHAPE).astype(np.float32) * 3 * scheme_noise
    tokens = np.argmax(original + rng.gumbel(size=SHAPE), axis=2).astype(np.int32)
    tokens = np.concatenate([np.array([[7], [8], [9]], np.int32), tokens[:, :-1]], axis=1)
    engine = Table(tokens, stored, **({"fault": fault} if fault else {}))
    pieces = verify.collect(engine, tokens, FolderOut(tmp_path))
    assert not engine.live, "sequences are given back"
    arrays = {"original": original, "dequantized": stored, "tokens": tokens}
    weights = {"rms_error": {}, "wrong": [], **changes}
    return verify.compare({"name": "it", "scheme": "q4f16_1"}, pieces, arrays, weights)


def test_a_right_engine_passes_on_every_path(tmp_path: Path):
    found = findings(tmp_path)
    check_limits(found, LIMITS)
    assert set(found.paths) == {"one shot", "prefill", "chunked prefill", "decode", "interleaved"}
    assert max(path.exact.max_error for path in found.paths.values()) == 0
    one_shot = found.paths["one shot"]
    assert len(one_shot.locations) == 3 * 40
    assert one_shot.original.rms_error == pytest.approx(0.05, rel=0.05)
    prefilled = {position + 1 for _, position in found.paths["prefill"].locations}
    assert prefilled == {1, 2, 15, 16, 17, 23, 24, 25, 40}
    assert {n for n, _ in found.paths["interleaved"].locations} == {0, 1, 2}


def test_progress_ends_at_its_total(tmp_path: Path):
    out = FolderOut(tmp_path)
    tokens = np.random.default_rng(0).integers(0, 9, (2, 17))
    tokens[:, 0] = 1, 2
    verify.collect(Table(tokens, np.zeros((2, 17, 9), np.float32)), tokens, out)
    assert out.steps[-1][0] == out.steps[-1][1]


def test_a_library_for_one_sequence_is_not_asked_for_two():
    tokens = np.random.default_rng(0).integers(0, 9, (2, 17))
    tokens[:, 0] = 1, 2
    one = {"max_batch_size": 1, "prefill_chunk_size": 24}
    engine = Table(tokens, np.zeros((2, 17, 9), np.float32), metadata=one)
    ticks: list[int] = []
    walked = {piece.path for piece in paths.run_paths(engine, tokens, lambda path, count: ticks.append(count))}
    assert walked == {"one shot", "prefill", "chunked prefill", "decode"}
    assert sum(ticks) == paths.total_tokens(engine, tokens)


@pytest.mark.parametrize("window", range(16, 70))
def test_every_window_is_long_enough_for_the_interleaved_path(window: int):
    tokens = np.random.default_rng(0).integers(0, 9, (2, window))
    tokens[:, 0] = 1, 2
    engine = Table(tokens, np.zeros((2, window, 9), np.float32))
    ticks: list[int] = []
    for piece in paths.run_paths(engine, tokens, lambda path, count: ticks.append(count)):
        assert max(piece.positions) < window
    assert sum(ticks) == paths.total_tokens(engine, tokens)


def spoil(calls: set[str], first: int = 0, by: float = 0.01) -> Fault:
    def fault(engine: Table, call: str, position: int, row: np.ndarray) -> np.ndarray:
        return row + by * np.sin(np.arange(len(row))) if call in calls and position >= first else row

    return fault


EVERYWHERE = {"logits", "continued", "prefill", "decode", "batch"}
FAULTS = {
    "another base of RoPE": (spoil(EVERYWHERE, first=1), "one shot", "position 0 agrees"),
    "another norm": (spoil(EVERYWHERE), "", "architecture key set against it"),
    "the decode kernel": (
        spoil({"decode", "batch"}, first=3),
        "decode|interleaved",
        "prefill agrees and decode does not",
    ),
    "the batch": (spoil({"batch"}, first=5), "interleaved", "prefill agrees and decode does not"),
    "page ends": (spoil({"continued"}, first=16), "chunked prefill", "a window at once agrees"),
    "prefill's last row": (spoil({"prefill"}, first=15), "prefill", "prefill's last position"),
    "a hair": (spoil({"logits"}, first=20, by=0.0006), "one shot", "position 0 agrees"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_red_and_its_place_is_named(name: str, tmp_path: Path):
    fault, where, hint = FAULTS[name]
    said = rf"same dequantized weights: ({where or '.*'}): max error \d.*rms error \d.*at position \d"
    with pytest.raises(StepError, match=said) as error:
        check_limits(findings(tmp_path, fault), LIMITS)
    assert hint in error.value.hint


def test_sequences_that_mix_are_red(tmp_path: Path):
    """Another sequence's presence changes the result."""

    def fault(engine: Table, call: str, position: int, row: np.ndarray) -> np.ndarray:
        return row + 0.1 * np.sin(np.arange(len(row))) if len(engine.live) > 1 and call == "decode" else row

    with pytest.raises(StepError, match="weights: interleaved: max error"):
        check_limits(findings(tmp_path, fault), LIMITS)


def test_nan_is_red_wherever_it_is(tmp_path: Path):
    def fault(engine: Table, call: str, position: int, row: np.ndarray) -> np.ndarray:
        return row * np.nan if call == "batch" and position == 6 else row

    with pytest.raises(StepError, match=r"interleaved: the library gives NaN or infinity in window 0 at position 6"):
        findings(tmp_path, fault)


@pytest.mark.parametrize("number", ["max_error", "rms_error", "kl", "top1", "perplexity"])
def test_each_limit_of_a_scheme_is_enforced_and_named(number: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "CLOSE_NATS", 0.0)
    found = findings(tmp_path)
    check_limits(found, LIMITS)
    tight = 0.9999 if number == "top1" else 1e-9
    with pytest.raises(StepError, match=rf"too far from the original checkpoint: {number} [\d.e-]+, limit ") as error:
        check_limits(found, {**LIMITS, number: tight})
    assert f"verify.{number}=" in error.value.hint
    assert "verify=off" in error.value.hint


def test_wrong_weights_come_first(tmp_path: Path):
    wrong = [{"parameter": "model.norm.weight", "row": 3, "steps": 2.0, "scale_ulps": 0.0}]
    with pytest.raises(StepError, match=r"model\.norm\.weight, row 3: a weight is 2 steps off"):
        check_limits(findings(tmp_path, spoil(EVERYWHERE), wrong=wrong), LIMITS)


def test_findings_are_json_with_places(tmp_path: Path):
    table = findings(tmp_path, spoil({"decode"}, first=9)).json()
    assert table["paths"]["decode"]["exact"]["worst"]["position"] >= 9
    assert set(table["perplexity"]) == {"original", "dequantized", "built", "ratio"}


def test_measures_against_their_definitions():
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 30, 11)).astype(np.float32)
    unit = measure.spread(a)
    assert unit == pytest.approx(np.sqrt(np.mean([row.var() for row in a.astype(np.float64)])))
    assert measure.spread(a + 100 * np.arange(30, dtype=np.float32)[:, None]) == pytest.approx(unit, rel=1e-4)
    found = measure.errors(a, b, unit)
    assert found.max_error == pytest.approx(np.abs(a - b).max() / unit)
    assert found.worst == np.abs(a - b).max(axis=1).argmax()
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (a.astype(np.float64), b.astype(np.float64)))
    kl = (p * np.log(p / q)).sum(axis=1)
    said = measure.divergence(a, b)
    assert (said.kl, said.worst) == (pytest.approx(kl.mean()), kl.argmax())
    assert said.top1 == np.mean(p.argmax(axis=1) == q.argmax(axis=1))
    lead = a.max(axis=1) - a[np.arange(30), q.argmax(axis=1)]
    assert said.top1_close == np.mean(lead <= measure.CLOSE_NATS)
    assert said.top1 < said.top1_close < 1
    tokens = rng.integers(0, 11, (2, 15))
    loss = measure.nll(a.reshape(2, 15, 11), tokens)
    assert loss[1, 4] == pytest.approx(-np.log(p[15 + 4, tokens[1, 5]]))


def test_blocks_do_not_change_the_measures(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 30, 11)).astype(np.float32)
    tokens = rng.integers(0, 11, (2, 15))

    def all_of_them() -> tuple[object, ...]:
        loss = measure.nll(a.reshape(2, 15, 11), tokens).sum()
        return measure.errors(a, b, 1.0), measure.divergence(a, b), measure.spread(a), loss

    whole = all_of_them()
    monkeypatch.setattr(measure, "ROWS_BYTES", 8 * 11 * 4)
    assert all_of_them()[2:] == pytest.approx(whole[2:])
    assert all_of_them()[:2] == whole[:2]


def test_cost_is_no_fault_without_a_stated_limit(tmp_path: Path):
    """An error of 0.4 spreads (KL about 0.6), as 4 bits cost small models: green, until a limit is stated."""
    found = findings(tmp_path, scheme_noise=0.4)
    limits = stated_limits(dict.fromkeys(COST), {"exact_max": 1e-4, "exact_rms": 1e-5})
    assert set(limits) == {"exact_max", "exact_rms"}
    check_limits(found, limits)
    stated = stated_limits(dict.fromkeys(COST) | {"kl": 0.1}, limits)
    with pytest.raises(StepError, match=r"too far from the original checkpoint: kl 0\.\d+, limit 0\.1"):
        check_limits(found, stated)


def test_a_model_of_which_nothing_is_left_is_red(tmp_path: Path):
    found = findings(tmp_path, scheme_noise=4.0)
    assert found.perplexity["original"] * 2 < found.context_free["perplexity"] < found.perplexity["built"]
    with pytest.raises(StepError, match=r"nothing sensible is left of the model: KL \d"):
        check_limits(found, {"exact_max": 1e-4, "exact_rms": 1e-5})


def test_a_model_that_makes_no_use_of_the_context_is_not_judged_by_it(tmp_path: Path):
    found = findings(tmp_path, scheme_noise=4.0)
    untrained = replace(found, context_free={"kl": 0.0, "perplexity": found.perplexity["original"]})
    check_limits(untrained, {"exact_max": 1e-4, "exact_rms": 1e-5})


def test_the_limit_of_correctness_follows_the_models_own_rounding():
    limits = {"exact_max": 1e-4, "exact_rms": 1e-5, "kl": 0.1}
    assert with_rounding(limits, {"max": 2e-5, "rms": 1e-7}) == {"exact_max": 4e-4, "exact_rms": 1e-5, "kl": 0.1}
