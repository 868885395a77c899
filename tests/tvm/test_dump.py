"""`build lower --dump`: what is in the folder, and that the library is the same as without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_build.lowering.choices import Choice, OperatorKernel, as_json, choose, recording
from llm_build.report.operators import describe_kernels
from llm_build.steps import lower
from llm_build.steps.dump import dump_lowering
from tests.tvm import tiny
from tests.tvm.test_gpu_code import params, target


def dumped(params: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """The folder of a dump, and that of the step with the same parameters."""
    dump, step = folder / "dump", folder / "step"
    dump.mkdir()
    step.mkdir()
    dump_lowering(params, dump, lambda *_: None)
    lower.run(params, {}, tiny.FolderOut(step))
    return dump, step


def check_common(dump: Path, step: Path, library: str) -> list[dict[str, Any]]:
    """What every dump has; returns its table of operators."""
    for name in (library, "metadata.json", "operators.json"):
        assert (dump / name).read_bytes() == (step / name).read_bytes(), name
    graphs = sorted(path.name for path in (dump / "graph").iterdir())
    assert [name.partition("_")[0] for name in graphs] == [f"{number:02d}" for number in range(len(graphs))]
    assert graphs[0] == "00_exported.txt"
    assert graphs[-1].endswith("_symbols.txt")
    before, after = (next((dump / "graph").glob(f"*_{name}.txt")) for name in ("exported", "builtins"))
    assert "R.call_tir(" in before.read_text()
    assert "R.call_tir(" not in after.read_text()
    table: list[dict[str, Any]] = json.loads((dump / "operators.json").read_text())
    for entry in table:
        assert (dump / "kernels" / f"{entry['function']}.tir.txt").read_text().count("def ") == 1
    assert {"embedding", "linear", "rms_norm", "attention_decode"} <= {entry["operator"] for entry in table}
    return table


def test_a_dump_for_a_cpu_has_the_code_of_each_kernel(tmp_path: Path) -> None:
    dump, step = dumped(tiny.lower_params(tiny.BASE, tiny.SCHEMES["q4f16_1"], "x86-64-v3"), tmp_path)
    table = check_common(dump, step, "library.so")
    for entry in table:
        kernel = dump / "kernels" / entry["function"]
        assert "define " in kernel.with_suffix(".ll").read_text()
        assert ".text" in kernel.with_suffix(".s").read_text()
        assert kernel.with_suffix(".o").read_bytes()[:4] == b"\x7fELF"
    linear = next(entry for entry in table if entry["operator"] == "linear")
    assert linear["schedule"] == "llm_build.lowering.schedules.cpu.linear:linear"
    few, many = linear["choices"]
    assert few == {"kernel": "GEMV", "reason": "up to 3 rows; inputs lie beside each other", "tile": few["tile"]}
    assert few["tile"]["lanes"] == 8
    assert (many["reason"], many["tile"]["rows"]) == ("more than 3 rows", 6)


def test_a_dump_for_a_browser_has_the_source_of_all_kernels(tmp_path: Path) -> None:
    dump, step = dumped(params(target("webgpu")), tmp_path)
    table = check_common(dump, step, "library.tar")
    source = (dump / "device.wgsl").read_text()
    assert all(f"{entry['function']}_kernel" in source for entry in table if entry["operator"] == "linear")
    assert "define " in (dump / "host.ll").read_text()
    assert (dump / "host.o").stat().st_size
    linear = next(entry for entry in table if entry["operator"] == "linear")
    assert linear["schedule"] == "llm_build.lowering.schedules.gpu.linear:linear"
    few, many = linear["choices"]
    assert few["kernel"] == "GEMV, K across threads"
    assert (many["kernel"], many["tile"]["rows"], many["tile"]["outputs"]) == ("tiles", 64, 64)


def test_choices_are_recorded_once_and_only_inside() -> None:
    choose("nothing hears this", "no one asked")
    with recording() as choices:
        for _ in range(2):
            choose("tiles", "more than 4 rows", rows=64, outputs=64)
        with recording() as inner:
            choose("GEMV", "one row")
    assert choices == [Choice("tiles", "more than 4 rows", {"rows": 64, "outputs": 64})]
    assert inner == [Choice("GEMV", "one row", {})]


def test_a_table_of_kernels_reads_as_lines() -> None:
    plain = OperatorKernel("routes", "routes", {"width": 8}, "")
    tiled = OperatorKernel(
        "linear1", "linear", {"n": 64, "k": 32, "bits": 0}, "llm_build.lowering.schedules.gpu.linear:linear",
        [Choice("tiles", "more than 4 rows", {"rows": 64, "outputs": 64})],
    )  # fmt: skip
    assert describe_kernels(as_json([plain, tiled])) == [
        "linear1: linear by gpu.linear:linear, n 64, k 32",
        "  tiles: more than 4 rows (rows 64, outputs 64)",
        "routes: routes by plain loops, width 8",
    ]
