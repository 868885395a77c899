"""The matrix of a sweep: its axes, its forms, and whom a failure concerns. Nothing is built here."""

from __future__ import annotations

from itertools import product

from llm_build.app.cells import matrix_document
from llm_build.cli.matrix import describe_cells
from llm_build.config.axes import Axes, axes_of
from llm_build.config.choices import Composed
from llm_build.report.matrix import Cell, Matrix, coloured, counted, legend, lines, lines_live, lines_short, plain
from llm_build.report.ranking import ranking_lines

MODELS, QUANTS, TARGETS = ("demo", "pythia_160m", "qwen2_0_5b"), ("q0f16", "q4f16_1"), ("cpu", "a6000", "webgpu")
SMALL = Matrix(
    ("quant", "target"),
    (
        Cell("a", ("q0f16", "cpu"), "ran", "", 12_345_678, 40.87, 40.8, 320.4, 0.0, 1.0, 16.0),
        Cell("b", ("q0f16", "cuda"), "failed", "lower", 1, 2.0),
        Cell("c", ("q4f16_1", "cpu"), "fresh", "", 3_100_000, 42.08, 40.8, 5600.2, 0.0124, 0.914, 4.51),
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
        f"quant    {'cpu':62}cuda",
        "q0f16    built 12.3 MB 16.00 bits KL 0.00000 top-1 100.0%   320 tok/s  failed lower",
        "q4f16_1  fresh  3.1 MB  4.51 bits KL 0.01240  top-1 91.4% 5,600 tok/s  unsupported",
    ]
    assert plain(counted(SMALL)) == "4 cells: 1 failed, 1 built, 1 fresh, 1 unsupported"
    assert legend(SMALL) == [
        "KL: how far the distribution of the next token is from the original's, in nats; 0: nothing lost",
        "top-1: tokens of held-out text whose likeliest successor is the original's",
        "tok/s: decoding, as `build bench` measured it on this machine",
    ]


def test_three_axes_are_a_table_for_each_model_as_wide_as_there_is_room():
    matrix = Matrix(("model", "quant", "target"), cells(nbytes=3_100_000, kl=0.0124, top1=0.914))
    wide, narrow, slim = said(matrix, 140), said(matrix, 90), said(matrix, 40)
    one = "built 3.1 MB KL 0.01240 top-1 91.4%"
    assert wide[0] == f"demo         {'cpu':37}{'a6000':37}webgpu"
    assert wide[2] == f"q4f16_1      {one}  {one}  {one}"
    assert [line.split(" ")[0] for line in wide] == [
        "demo", *QUANTS, "", "pythia_160m", *QUANTS, "", "qwen2_0_5b", *QUANTS
    ]  # fmt: skip
    assert narrow[3:5] == [
        "q4f16_1      built 3.1 MB            built 3.1 MB            built 3.1 MB",
        "             KL 0.01240 top-1 91.4%  KL 0.01240 top-1 91.4%  KL 0.01240 top-1 91.4%",
    ]
    assert slim[0] == f"demo-q0f16-cpu              {one}"
    assert len(slim) == len(matrix.cells)


def test_one_axis_is_a_list_and_what_is_no_cell_is_blank_or_excluded():
    assert said(Matrix(("quant",), tuple(Cell(q, (q,), "waiting") for q in QUANTS))) == [
        "q0f16    waiting", "q4f16_1  waiting"
    ]  # fmt: skip
    holed = SMALL._replace(cells=SMALL.cells[:3])
    assert said(holed)[2] == "q4f16_1  fresh  3.1 MB  4.51 bits KL 0.01240  top-1 91.4% 5,600 tok/s"
    assert plain(counted(holed._replace(excluded=1))) == "3 cells: 1 failed, 1 built, 1 fresh, 1 excluded"
    assert said(holed._replace(excluded=1))[2].endswith("5,600 tok/s  excluded")
    twins = Matrix(("quant",), (Cell("one", ("q0f16",), "fresh"), Cell("two", ("q0f16",), "stale", "2/9 steps")))
    assert said(twins) == ["one  fresh", "two  stale 2/9 steps"]


def test_values_of_keys_are_labelled_with_their_key():
    at = [(quant, batch) for quant in QUANTS for batch in ("1", "2", "3")]
    matrix = Matrix(("quant", "model.max_batch_size"), tuple(Cell("-".join(each), each, "waiting") for each in at))
    assert said(matrix)[0].split() == ["quant", "max_batch_size=1", "max_batch_size=2", "max_batch_size=3"]
    alone = Matrix(("model.max_batch_size",), tuple(Cell(each, (each,), "waiting") for each in ("1", "2")))
    assert [line.split() for line in said(alone)] == [["max_batch_size=1", "waiting"], ["max_batch_size=2", "waiting"]]
    methods = Matrix(
        ("quant", "quant.method", "target"), tuple(Cell(m, ("q4f16_1", m, "cpu"), "ran") for m in ("rtn", "mse"))
    )
    assert [line.split() for line in said(methods)] == [
        ["q4f16_1", "cpu"],
        ["method=rtn", "built"],
        ["method=mse", "built"],
    ]


def test_schemes_are_ranked_by_kl_where_perplexity_is_noise():
    """Perplexity 42.75 with KL 0.025, 42.53 with KL 0.078, as a sweep of budgets found over 512 tokens."""
    figures = (("4.35", 42.75, 0.025, 0.9, 4.35), ("3.9", 42.53, 0.078, 0.83, 3.9), ("8", 40.9, 0.0, 1.0, 8.0))
    matrix = Matrix(
        ("quant.budget", "target"),
        tuple(
            Cell(f"{budget}-{target}", (budget, target), "ran", "", 1, perplexity, 40.8, None, kl, top1, bits)
            for budget, perplexity, kl, top1, bits in figures for target in ("cpu", "webgpu")
        ),
    )  # fmt: skip
    assert ranking_lines(matrix) == [
        "least lost first:",
        "  budget=8     KL 0.00000  top-1 100.0%   8.00 bits per weight",
        "  budget=4.35  KL 0.02500  top-1  90.0%   4.35 bits per weight",
        "  budget=3.9   KL 0.07800  top-1  83.0%   3.90 bits per weight",
    ]
    document = matrix_document(matrix)
    assert document["ranking"][::2] == ["8-cpu", "4.35-cpu", "3.9-cpu"]
    assert document["cells"][0]["kl"] == 0.025
    assert (document["cells"][0]["top1"], document["cells"][0]["bits_per_weight"]) == (0.9, 4.35)
    assert ranking_lines(matrix._replace(cells=matrix.cells[:2])) == [], "one scheme on two targets is no ranking"
    assert ranking_lines(SMALL._replace(cells=SMALL.cells[:1])) == []


def test_models_are_ranked_by_themselves():
    every = tuple(cell._replace(kl=0.1 * n) for n, cell in enumerate(cells()))
    said = ranking_lines(Matrix(("model", "quant", "target"), every))
    assert [line for line in said if not line.startswith(" ")] == [f"least lost first of {model}:" for model in MODELS]


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
