"""`build bench`: what it plans, what it refuses, what it shows. Nothing is measured here."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from llm_build.app.buildable import runnable
from llm_build.app.merge import merge
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import parse
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.errors import Unsupported
from llm_build.core.plan import check_plan
from llm_build.planner.graph.bench import ALL_CORES, bench_plan
from llm_build.report.bench import print_bench
from llm_build.targets import host_machine

RATE = {"median": 120.0, "low": 114.0, "high": 126.0, "runs": 7}
BENCH = {
    "measured": "2026-11-22T20:00:00+00:00", "kept": True, "load_s": 0.4, "load_average": 9.0,
    "machine": {"cpu": "Some CPU", "cores": 2, "instructions": "x86-64-v3", "memory_gib": 8, "system": "Linux"},
    "first_token": {"tokens": 256, "cold_s": 0.5, "warm_s": 0.02},
    "prefill": {"tokens": 256, "tokens_per_s": RATE},
    "decode": [{"context": c, "tokens_per_s": RATE, "share_of_limit": 0.39, "limit": 3077.0} for c in (8, 512, 960)],
    "left_out": [{"context": 4096, "why": "it takes 80 s to fill"}], "bandwidth_bytes_per_s": 2e10,
    "memory": {"peak_rss_bytes": 110_000_000, "pss_bytes": 80_000_000, "device_bytes": None},
}  # fmt: skip


@pytest.fixture
def request_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))

    def request(*lines: str) -> BuildRequest:
        return merge([compose.compose(line.split(), None) for line in lines], find_folders())

    return request


def test_a_step_of_its_own_that_no_build_plans(request_of):
    found = request_of("target.cpu=x86-64-v2")
    assert not any(step.name == "bench" for step in found.plan.steps.values())
    plan = bench_plan([(found.recipes[0], {"cpu": "this one"})], found.plan)
    check_plan(plan)
    (goal,) = plan.goals
    assert goal.name == "demo-q4f16_1-cpu-cpu=x86-64-v2 bench"
    (id_,) = goal.steps
    step = plan.steps[id_]
    assert step.params == {"machine": {"cpu": "this one"}, "prompt": 256, "contexts": [8, 512]}
    assert step.validation
    assert step.resources.cpu == ALL_CORES
    assert not any(step.name.startswith("verify") for step in plan.steps.values())
    other = bench_plan([(found.recipes[0], {"cpu": "another"})], found.plan)
    assert other.goals[0].steps != goal.steps


def test_what_cannot_run_here_is_refused(request_of):
    with pytest.raises(Unsupported, match="cannot run a library for arm64") as caught:
        runnable(request_of("target.cpu=arm64"), "bench measures")
    assert caught.value.exit_code == 2
    found = runnable(request_of("target.cpu=x86-64-v2", "target.cpu=arm64 name=there"), "bench measures")
    assert len(found.recipes) == 1
    assert list(found.refused) == ["there"]


def test_table():
    stream = io.StringIO()
    print_bench([{"name": "one", "bench": BENCH}], stream)
    head, row, where, kept, busy, left = stream.getvalue().splitlines()
    assert head.startswith("tokens/s")
    for cell in ("one ", "120 ±5%", "39% of 3,077", "20 ms", "400 ms", "110.0 MB"):
        assert cell in row
    assert where == "on Some CPU, 2 cores (x86-64-v3), 8 GiB, Linux"
    assert kept == "kept from 2026-11-22T20:00:00+00:00: --again measures anew"
    assert busy == "other programs were running: load average 9.0"
    assert left == "decode at 4096 left out: it takes 80 s to fill"


def test_a_sweep_has_a_row_per_cell_and_says_whose_each_note_is():
    stream = io.StringIO()
    short = {**BENCH, "decode": BENCH["decode"][:1], "left_out": [], "load_average": 0.1}
    print_bench([{"name": "one", "bench": short}, {"name": "two", "bench": BENCH}], stream)
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["one", "two"]
    assert "decode at 512" in lines[0]
    assert lines[3].startswith("on Some CPU")
    assert lines[4].startswith("one: kept")
    assert lines[-1].startswith("two: decode at 4096 left out")


def test_the_machine(monkeypatch: pytest.MonkeyPatch):
    found = host_machine.describe(gpu=False)
    assert set(found) == {"cpu", "cores", "instructions", "memory_gib", "system"}
    assert all(found.values())
    assert found == host_machine.describe(gpu=False)
    monkeypatch.setattr(host_machine.subprocess, "run", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert host_machine.describe(gpu=True)["gpu"] == "none that nvidia-smi finds"


def test_the_command_line():
    found = parse(["bench", "quant=q0f16", "--again"])
    assert (found.command, found.overrides, found.options.again) == ("bench", ("quant=q0f16",), True)
