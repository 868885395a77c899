"""The matrix of a sweep: its axes, its forms, and whom a failure concerns. Nothing is built here."""

from __future__ import annotations

from itertools import product

from llm_build.cli.matrix import describe_cells
from llm_build.config.axes import Axes, axes_of
from llm_build.config.choices import Composed
from llm_build.report.matrix import Cell, Matrix, coloured, counted, legend, lines, lines_live, lines_short, plain

MODELS, QUANTS, TARGETS = ("demo", "pythia_160m", "qwen2_0_5b"), ("q0f16", "q4f16_1"), ("cpu", "a6000", "webgpu")
SMALL = Matrix(
    ("quant", "target"),
    (
        Cell("a", ("q0f16", "cpu"), "ran", "", 12_345_678, 40.87, 40.8, 320.4),
        Cell("b", ("q0f16", "cuda"), "failed", "lower", 1, 2.0),
        Cell("c", ("q4f16_1", "cpu"), "fresh", "", 3_100_000, 42.08, 40.8, 5600.2),
        Cell("d", ("q4f16_1", "cuda"), "unsupported"),
    ),
)


def composed(*overrides: str, **choices: str) -> Composed:
    return Composed({}, {"model": "demo", "quant": "q4f16_1", "target": "cpu", **choices}, overrides)


def cells(status: str = "ran", **more) -> tuple[Cell, ...]:
    return tuple(Cell("-".join(at), at, status, **more) for at in product(MODELS, QUANTS, TARGETS))


def said(matrix: Matrix, width: int = 120) -> list[str]:
    return [plain(line) for line in lines(matrix, width)]


def test_axes_are_what_differs():
    jobs = [composed(target=target, quant=quant) for quant, target in product(("q0f16", "w8a8"), ("cpu", "cuda"))]
    axes = axes_of(jobs, ["a", "b", "c", "d"])
    assert axes.names == ("quant", "target")
    assert axes.at["b"] == ("q0f16", "cuda")
    budgets = ["++quant.budget=4.5"], ["++quant.budget=5"], []
    axes = axes_of([composed("verify=off", *budget) for budget in budgets], ["a", "b", "c"])
    assert axes == Axes(("quant.budget",), {"a": ("4.5",), "b": ("5",), "c": ("–",)})
    assert axes_of([composed()], ["a"]).names == ()
    sources = axes_of([composed("model.source=hf\\://org/name"), composed("model.source=/x")], ["a", "b"])
    assert sources.at["a"] == ("hf://org/name",)


def test_two_axes_are_one_table_and_figures_line_up():
    assert said(SMALL) == [
        "quant    cpu                                  cuda",
        "q0f16    built 12.3 MB ppl 40.87   320 tok/s  failed lower",
        "q4f16_1  fresh  3.1 MB ppl 42.08 5,600 tok/s  unsupported",
    ]
    assert plain(counted(SMALL)) == "4 cells: 1 failed, 1 built, 1 fresh, 1 unsupported"
    assert legend(SMALL) == [
        "ppl: perplexity on held-out text (original: 40.80)",
        "tok/s: decoding, as `build bench` measured it on this machine",
    ]


def test_three_axes_are_a_table_for_each_model_as_wide_as_there_is_room():
    matrix = Matrix(("model", "quant", "target"), cells(nbytes=3_100_000, perplexity=42.08, original=40.8))
    wide, narrow, slim = said(matrix, 120), said(matrix, 70), said(matrix, 40)
    assert wide[0] == "demo         cpu                     a6000                   webgpu"
    assert wide[2] == "q4f16_1      built 3.1 MB ppl 42.08  built 3.1 MB ppl 42.08  built 3.1 MB ppl 42.08"
    assert [line.split(" ")[0] for line in wide] == [
        "demo", *QUANTS, "", "pythia_160m", *QUANTS, "", "qwen2_0_5b", *QUANTS
    ]  # fmt: skip
    assert narrow[3:5] == [
        "q4f16_1      built 3.1 MB  built 3.1 MB  built 3.1 MB",
        "             ppl 42.08     ppl 42.08     ppl 42.08",
    ]
    assert slim[0] == "demo-q0f16-cpu              built 3.1 MB ppl 42.08"
    assert len(slim) == len(matrix.cells)


def test_one_axis_is_a_list_and_what_is_no_cell_is_blank_or_excluded():
    assert said(Matrix(("quant",), tuple(Cell(q, (q,), "waiting") for q in QUANTS))) == [
        "q0f16    waiting", "q4f16_1  waiting"
    ]  # fmt: skip
    holed = SMALL._replace(cells=SMALL.cells[:3])
    assert said(holed)[2] == "q4f16_1  fresh  3.1 MB ppl 42.08 5,600 tok/s"
    assert plain(counted(holed._replace(excluded=1))) == "3 cells: 1 failed, 1 built, 1 fresh, 1 excluded"
    assert said(holed._replace(excluded=1))[2] == "q4f16_1  fresh  3.1 MB ppl 42.08 5,600 tok/s  excluded"
    twins = Matrix(("quant",), (Cell("one", ("q0f16",), "fresh"), Cell("two", ("q0f16",), "stale", "2/9 steps")))
    assert said(twins) == ["one  fresh", "two  stale 2/9 steps"]


def test_while_it_changes_columns_stand_still_and_a_matrix_too_tall_shows_what_runs():
    waiting = Matrix(("model", "quant", "target"), cells("waiting"))
    first = [plain(line) for line in lines_live(waiting, 80, 20)]
    running = waiting._replace(
        cells=(waiting.cells[0]._replace(status="running", note="verify.dequantized"), *waiting.cells[1:])
    )
    second = [plain(line) for line in lines_live(running, 80, 20)]
    assert first[0] == second[0]
    assert second[1] == "q0f16        ▸ verify          waiting           waiting"
    assert [plain(line) for line in lines_live(running, 80, 8)] == ["demo-q0f16-cpu  ▸ verify.dequantized"]
    crowd = Matrix(("model", "quant", "target"), cells("failed", note="lower"))
    assert [plain(line) for line in lines_live(crowd, 80, 7)][2] == "and 16 more"


def test_a_matrix_of_many_screens_is_cut_to_what_changed():
    many = Matrix(("model",), tuple(Cell(f"m{n}", (f"m{n}",), "stale" if n % 2 else "fresh") for n in range(40)))
    shown = [plain(line) for line in lines_short(many, 5)]
    assert shown == ["m1  stale", "m3  stale", "m5  stale", "m7  stale", "and 16 more"]


def test_colours_are_of_the_terminal_alone():
    assert coloured(lines(SMALL, 120)[2]).endswith("\033[35munsupported\033[0m")


def test_cells_are_described_as_overrides_where_they_are_a_product():
    axes = Axes(("model", "quant", "target"), {cell.name: cell.at for cell in cells()})
    demo = [name for name in axes.at if name.startswith("demo-")]
    assert describe_cells(axes, axes.at) == "all 18"
    assert describe_cells(axes, demo) == "model=demo (6 of 18)"
    assert describe_cells(axes, demo[:1]) == "demo-q0f16-cpu"
    assert describe_cells(axes, [demo[0], demo[3]]) == "model=demo target=cpu (2 of 18)"
    assert describe_cells(axes, [name for name in axes.at if "webgpu" not in name]) == "target=cpu,a6000 (12 of 18)"
    assert describe_cells(axes, [demo[0], demo[4]]) == "demo-q0f16-cpu, demo-q4f16_1-a6000"
    assert describe_cells(axes, [name for name in axes.at if name != demo[0]]).endswith(" and 14 more")
