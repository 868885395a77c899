"""What is told while a build runs, in lines and on a terminal, from the events of a run. Nothing is built here."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from llm_build.cli.output import print_recipe
from llm_build.core.errors import StepError
from llm_build.core.events import Event, Expanded, Finished, Planned, Progress, Started, Waiting, Warned
from llm_build.core.plan import Goal, Plan
from llm_build.core.step import Input, Step
from llm_build.report import lines as lines_module
from llm_build.report.lines import Lines
from llm_build.report.live import Live, RunningBar
from llm_build.report.matrix import Cell, Matrix
from llm_build.report.run_state import CellProgress, RunState
from llm_build.report.text import TransferRates, format_clock, wrap_text

CELLS = tuple(Cell(f"{q}-{t}", (q, t), "waiting") for q in ("q4", "q8") for t in ("cpu", "cuda"))
MATRIX = Matrix(("quant", "target"), (*CELLS, Cell("q8-vulkan", ("q8", "vulkan"), "unsupported")))
ITEMS = ("quantize-q4[0]", "quantize-q4[1]")


def plan() -> Plan:
    """fetch is of all cells, quantize of those of a scheme, lower and package of one."""
    steps: dict[str, Step] = {}
    goals = []
    for cell in CELLS:
        quant, target = cell.at
        ids = ("fetch-1", f"quantize-{quant}", f"lower-{quant}{target}", f"package-{quant}{target}")
        steps |= {id_: Step(id=id_, name=id_.partition("-")[0], function="x", params={}) for id_ in ids}
        goals.append(Goal(cell.name, ids, ids[-1]))
    return Plan(steps, tuple(goals))


def started(id_: str) -> Event:
    return Started(id_, name_of(id_), "never built", "")


def ended(id_: str, status: str = "ran") -> Event:
    error = StepError("it broke") if status == "failed" else None
    reason = "needs lower, which failed" if status == "skipped" else "never built"
    return Finished(id_, name_of(id_), status, reason, 1.0, 2_000_000, error=error)  # type: ignore[arg-type]


def name_of(id_: str) -> str:
    return id_.partition("-")[0] + ("[" + id_.partition("[")[2] if "[" in id_ else "")


BEGUN = [
    Planned(plan()), started("fetch-1"), ended("fetch-1"),
    Expanded("quantize-q4", ITEMS, ("quantize[0]", "quantize[1]")),
    started(ITEMS[0]), Progress(ITEMS[0], "quantize[0]", 5, 10, "B", ""), started("lower-q8cpu"),
]  # fmt: skip


def test_a_cell_stands_where_its_steps_do():
    board = RunState(MATRIX)
    for event in BEGUN:
        board(event)
    assert board.progress_of("q4-cpu") == CellProgress("running", "quantize", 1, 4)
    assert board.progress_of("q8-cpu") == CellProgress("running", "lower", 1, 4)
    assert board.progress_of("q8-cuda") == CellProgress("waiting", "", 1, 4)
    assert board.counts() == (1, 11)
    for event in (
        ended(ITEMS[0]),
        ended(ITEMS[1], "fresh"),
        ended("lower-q8cpu", "failed"),
        ended("package-q8cpu", "skipped"),
    ):
        board(event)
    assert board.states["quantize-q4"] == "ran"
    assert board.progress_of("q8-cpu").status == "failed"
    for event in (ended("lower-q4cpu", "fresh"), ended("package-q4cpu")):
        board(event)
    assert board.progress_of("q4-cpu") == CellProgress("ran", "", 4, 4, 2_000_000)
    assert [cell.status for cell in board.now().cells] == ["ran", "waiting", "failed", "waiting", "unsupported"]


def test_a_cell_whose_rules_are_still_to_be_picked_waits_for_the_rest():
    board, (first, *_) = RunState(MATRIX), plan().goals
    board(Planned(Plan({"fetch-1": plan().steps["fetch-1"]}, (first._replace(steps=("fetch-1",), partial=True),))))
    board(ended("fetch-1"))
    assert board.progress_of("q4-cpu") == CellProgress("waiting", "", 1, 1)
    board(Planned(plan()))
    assert board.progress_of("q4-cpu") == CellProgress("waiting", "", 1, 4, 0)


def test_a_step_is_named_by_what_its_cells_share():
    board = RunState(MATRIX)
    board(Planned(plan()))
    assert board.label("fetch-1", "fetch") == "fetch"
    assert board.label(ITEMS[1], "quantize[1]") == "quantize[1] q4"
    assert board.label("lower-q8cuda", "lower") == "lower q8 cuda"
    plain = RunState()
    plain(Planned(plan()))
    assert plain.label("lower-q8cuda", "lower") == "lower"


def told(*events: Event, matrix: Matrix | None = MATRIX) -> list[str]:
    stream = io.StringIO()
    with Lines(stream, matrix=matrix) as listen:
        for event in events:
            listen(event)
    return stream.getvalue().splitlines()


def test_lines_say_for_which_cells_and_each_thing_once():
    warning = "no chat template"
    said = told(
        *BEGUN, Warned("package-q4cpu", "package", warning), Warned("package-q8cpu", "package", warning),
        Waiting("lower-q4cpu", "lower", 7), ended("lower-q8cpu", "failed"), ended("package-q8cpu", "skipped"),
        ended("package-q8cuda", "skipped"), Warned("", "", "the remote is away"),
    )  # fmt: skip
    assert said[:4] == [
        "fetch: started (never built)", "fetch: done in 1.0 s, 2.0 MB", "quantize[0] q4: started (never built)",
        "lower q8 cpu: started (never built)",
    ]  # fmt: skip
    assert said[4:6] == [
        "warning: package q4 cpu: no chat template",
        "lower q4 cpu: another build (process 7) is at it, waiting",
    ]
    assert said[6].startswith("lower q8 cpu: FAILED after ")
    assert said[7:] == [
        "warning: the remote is away",
        "warning: package: the same for 1 more: no chat template",
        "2 steps skipped (needs lower, which failed)",
    ]


def test_transfers_are_told_now_and_then_and_when_they_are_over(monkeypatch: pytest.MonkeyPatch):
    events = [Progress("", "download", 1_000_000 * n, 4_000_000, "B", f"{n // 2} of 2 files") for n in (1, 2, 4)]
    assert told(*events) == ["download: 4.0 MB of 4.0 MB, 2 of 2 files"]
    monkeypatch.setattr(lines_module, "TRANSFER_S", 0.0)
    said = told(*events)
    assert said[0].startswith("download: 2.0 MB of 4.0 MB, 1 of 2 files, ")
    assert said[0].endswith("/s")
    assert len(said) == 3


def test_a_rate_is_that_of_the_last_seconds(monkeypatch: pytest.MonkeyPatch):
    flow, now = TransferRates(), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for at, done in ((0, 0), (1, 10), (2, 20), (10, 5020), (11, 8020), (12, 9020)):
        now[0] = 100.0 + at
        flow.note("download", done * 1000)
    assert flow.rate("download") == ", 2.0 MB/s"
    flow.note("download", 0)  # another lot
    assert flow.rate("download") == ""
    assert [format_clock(4.9), format_clock(750), format_clock(3723)] == ["0:04", "12:30", "1:02:03"]


def screen(live: Live, width: int, height: int) -> list[str]:
    live.console = live.bars.live.console = Console(file=io.StringIO(), width=width, height=height, highlight=False)
    live.console.print(live.draw())
    return [line.rstrip() for line in live.console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_screen_of_a_sweep_has_its_matrix_what_runs_and_a_sum():
    with Live(io.StringIO(), MATRIX) as live:
        for event in BEGUN:
            live(event)
        shown = screen(live, 80, 24)
        assert shown[:4] == [
            "quant  cpu               cuda              vulkan",
            "q4     ▸ quantize        ▸ quantize",
            "q8     ▸ lower           waiting 1/4       unsupported",
            "",
        ]
        assert shown[4][2:].startswith("quantize q4")
        assert "0 of 2 parts" in shown[4]
        assert shown[5][2:].startswith("lower q8 cpu")
        assert shown[6].startswith("5 cells: 3 running, 1 waiting, 1 unsupported; 1 of 11 steps, 0:0")
        assert len(shown) == 7
        assert all(len(line) <= 40 for line in screen(live, 40, 24))
        small = screen(live, 80, 6)
        assert len(small) <= 6
        assert small[-1].startswith("5 cells: ")


CELL = ("fetch-1", "quantize-q4", "lower-q4cpu", "package-q4cpu")


def one_build() -> Plan:
    """fetch -> quantize -> package <- lower."""
    reads = {"quantize-q4": ("fetch-1",), "package-q4cpu": ("quantize-q4", "lower-q4cpu")}
    steps = {
        id_: Step(
            id=id_, name=id_.partition("-")[0], function="x", params={},
            inputs={each: Input(each, "out") for each in reads.get(id_, ())},
        )
        for id_ in CELL
    }  # fmt: skip
    return Plan(steps, (Goal("q4-cpu", CELL, CELL[-1]),))


def test_a_plain_build_shows_every_step_what_waits_for_what_and_what_is_next():
    with Live(io.StringIO()) as live:
        live(Planned(one_build()))
        assert not live.screen.is_started, "a build with nothing to do shows no screen"
        for event in (started("fetch-1"), started("lower-q4cpu")):
            live(event)
        fetch, quantize, lower, package, total = screen(live, 80, 24)
        assert quantize.split()[:2] == ["·", "quantize"]
        assert quantize.endswith("waits for fetch")
        assert package.endswith("waits for quantize, lower")
        assert fetch.endswith("0:00")
        assert total == "0 of 4 steps, 0:00; next: quantize"
        for event in (
            ended("fetch-1", "fresh"), Expanded("quantize-q4", ITEMS, ("quantize[0]", "quantize[1]")),
            started(ITEMS[0]), ended(ITEMS[0]), ended(ITEMS[1]), ended("lower-q4cpu", "failed"),
            ended("package-q4cpu", "skipped"),
        ):  # fmt: skip
            live(event)
        fetch, quantize, lower, package, total = screen(live, 80, 24)
    assert fetch.split() == ["✓", "fetch", "fresh"]
    assert quantize.startswith("✓ quantize")
    assert quantize.endswith("2 parts, 4.0 MB")
    assert lower.split() == ["✗", "lower", "failed"]
    assert package.startswith("– package")
    assert total.startswith("4 of 4 steps, 0:0")


def test_a_bar_never_runs_backwards_and_is_not_red():
    shares = []
    with Live(io.StringIO()) as live:
        for event in (Planned(one_build()), started("lower-q4cpu")):
            live(event)
        for done, total in ((0, 0), (30, 41), (44, 74), (40, 74), (60, 74), (74, 74), (0, 0), (80, 74)):
            live(Progress("lower-q4cpu", "lower", done, total, "passes", "x"))
            shares.append(live.task(live.row("lower-q4cpu", "lower")).completed)
        bar = next(column for column in live.bars.columns if isinstance(column, RunningBar))
        assert "74 passes" in screen(live, 80, 24)[2]
    assert shares == sorted(shares)
    assert shares[1:4] == [30 / 41] * 3
    assert shares[-1] == 1.0
    assert {bar.complete_style, bar.finished_style, bar.pulse_style} == {"cyan"}


def test_a_small_screen_keeps_what_runs_and_the_total():
    with Live(io.StringIO()) as live:
        for event in (Planned(one_build()), ended("fetch-1"), started("lower-q4cpu")):
            live(event)
        for height in (3, 4, 5):
            shown = screen(live, 80, height)
            assert len(shown) <= height - 1
            assert any("lower" in line for line in shown)
            assert shown[-1].startswith("1 of 4 steps")


def test_lines_about_what_runs_come_more_and_more_rarely(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Lines, "tick", lambda self: None)
    stream, printed = io.StringIO(), list[int]()
    with Lines(stream) as listen:
        listen(started("lower-q4cpu"))
        listen(Progress("lower-q4cpu", "lower", 30, 41, "passes", "fold"))
        for second in range(1, 601):
            before, now[0] = len(stream.getvalue()), 100.0 + second
            listen.say_what_runs()
            printed += [second] * (len(stream.getvalue()) > before)
        assert printed[:6] == [2, 6, 14, 30, 62, 122]
        assert len(printed) <= 15
        listen(ended("fetch-1"))
        now[0] += 2.0
        listen.say_what_runs()
    lines = stream.getvalue().splitlines()
    assert lines[1] == "... lower 0:02 (30 of 41 passes fold)"
    assert lines[-1] == "... lower 10:02 (30 of 41 passes fold)", "what happens makes it speak again soon"


def test_long_lines_are_broken_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "20")
    assert wrap_text("one two three four five six", io.StringIO()) == "one two three four five six"
    assert wrap_text("one two three four five six\n  kept", Terminal()) == "one two three four\n  five six\n  kept"


@pytest.mark.parametrize(
    ("statuses", "said"),
    [
        (("ran", "ran"), "demo: built in 12.3 s into "),
        (("fresh", "ran"), "demo: built in 12.3 s (1 of 2 steps ran) into "),
        (("fresh", "fresh"), "demo: up to date (all 2 steps fresh) in "),
        (("fresh",), "demo: up to date (all 1 step fresh) in "),
    ],
)
def test_a_build_ends_with_what_it_took(statuses: tuple[str, ...], said: str, tmp_path):
    (tmp_path / "library.so").write_bytes(b"12345")
    facts = {"kl": 0.01236, "top1": 0.9142, "perplexity": 42.08, "perplexity_original": 40.87}
    steps = [{"name": f"s{n}", "role": "", "status": s, "validation": False} for n, s in enumerate(statuses)]
    steps[-1] |= {"validation": True, "facts": facts}
    stream = io.StringIO()
    print_recipe({"name": "demo", "status": "ran", "output": str(tmp_path), "steps": steps}, stream, False, 12.34)
    figures = "5 B; KL 0.0124, top-1 91.4%, perplexity 42.08 (original 40.87)"
    assert stream.getvalue() == f"{said}{tmp_path}/, {figures}\n"
