"""What the lower step writes: bytes that depend on the parameters alone, and a description that tells the truth."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tvm
from tvm import ir, tirx

from llm_build import architectures
from llm_build.core.errors import StepError
from llm_build.lowering.backends import cpu as backend
from llm_build.lowering.kernel_modules import Schedules
from llm_build.lowering.machine import Machine, machine_of
from llm_build.lowering.passes.kernels import with_schedules
from llm_build.lowering.schedules.cpu.vector import Isa
from llm_build.models.decoder import Model
from llm_build.ops import emit as op
from llm_build.ops.linear import LinearLabel
from llm_build.quant import layout
from llm_build.targets import cpu, link
from tests.conftest import ROOT
from tests.tvm import tiny
from tests.tvm.conftest import Built

HAVE_THE_VOCABULARY = {"embedding", "linear4", "shape_func1", "shape_func2", "softmax_with_temperature_kernel"}
LOWER = """
import sys
from pathlib import Path
from tests.tvm import tiny
for name in sys.argv[2:]:
    tiny.compile_library(Path(sys.argv[1]), tiny.BASE, tiny.SCHEMES[name])
"""


def python(code: str, *words: str, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tools/path", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bytes_do_not_depend_on_process_folder_hash_seed_or_what_was_lowered_before(tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "another" / "longer folder"
    for folder, seed, schemes in ((one, "1", ["q4f16_1"]), (two, "2", ["q0f32", "q4f16_1"])):
        folder.mkdir(parents=True)
        python(LOWER, str(folder), *schemes, cwd=folder, PYTHONHASHSEED=seed, TMPDIR=str(folder))
    for name in ("library.so", "metadata.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert str(tmp_path).encode() not in (one / "library.so").read_bytes()


def test_metadata_describes_the_library(built: Callable[[str, str], Built]):
    case = built("grouped", "q4f16_1")
    described = json.loads((case.folder / "metadata.json").read_text())
    assert case.engine().metadata == described
    assert {key: described[key] for key in tiny.METADATA} == tiny.METADATA
    assert described["model_type"] == "llama"
    assert described["quantization"] == "q4f16_1"
    config = architectures.load("llama").from_architecture(case.architecture)
    pieces = [
        (piece.name, list(piece.shape), piece.dtype)
        for parameter in architectures.load("llama").parameters(config)
        for piece in layout.stored_tensors(parameter, tiny.SCHEMES["q4f16_1"])
    ]
    assert sorted((p["name"], p["shape"], p["dtype"]) for p in described["params"]) == sorted(pieces)
    usage = described["memory_usage"]
    rows = tiny.METADATA["prefill_chunk_size"] * 4  # bytes of one feature of a whole chunk
    assert usage["prefill"] >= rows * 2 * case.architecture["intermediate_size"]
    assert usage["decode"] < usage["prefill"] < 20 * rows * 2 * case.architecture["intermediate_size"]


def test_progress_names_every_pass_and_kernel(tmp_path: Path):
    out = tiny.compile_library(tmp_path, {**tiny.BASE, "num_hidden_layers": 1}, tiny.SCHEMES["q0f32"])
    assert {"memory plan", "symbols", "attention_decode", "linear", "link", "done"} <= set(out.labels)
    assert len(out.labels) > 55


def test_a_kernel_of_an_earlier_library_is_not_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiled: list[str] = []
    compile_kernel = backend.compile_kernel

    def counted(variable: ir.GlobalVar, function: tirx.PrimFunc, machine: Machine) -> object:
        compiled.append(variable.name_hint)
        return compile_kernel(variable, function, machine)

    monkeypatch.setattr(backend, "compile_kernel", counted)
    monkeypatch.setattr(backend, "_compiled", OrderedDict())
    tiny.compile_library(tmp_path / "one", tiny.BASE, tiny.SCHEMES["q0f32"])
    assert {"attention_decode", "linear", "rms_norm"} <= set(compiled)
    compiled.clear()
    tiny.compile_library(tmp_path / "two", tiny.BASE | {"vocab_size": 300}, tiny.SCHEMES["q0f32"])
    assert set(compiled) == HAVE_THE_VOCABULARY
    compiled.clear()
    tiny.compile_library(tmp_path / "three", tiny.BASE | {"vocab_size": 300}, tiny.SCHEMES["q0f32"])
    assert compiled == []


def test_layers_share_their_kernels(tmp_path: Path):
    facts = [
        tiny.compile_library(tmp_path / str(layers), {**tiny.BASE, "num_hidden_layers": layers}, tiny.SCHEMES["q0f32"])
        .facts["kernels"]
        for layers in (1, 5)
    ]  # fmt: skip
    assert facts[0] == facts[1]


def test_running_needs_neither_compiler_nor_torch(built: Callable[[str, str], Built]):
    code = """
import sys
from pathlib import Path
from llm_build.runtime.engine import Engine
engine = Engine.from_folder(Path(sys.argv[1]))
logits = engine.prefill(engine.add_sequence(), [1, 2, 3])
print(len(logits), "torch" in sys.modules, "libtvm_compiler" in Path("/proc/self/maps").read_text())
"""
    assert python(code, str(built("grouped", "q0f32").folder)).split() == ["203", "False", "False"]


def test_lower_imports_no_torch(tmp_path: Path):
    assert python(LOWER + "print('torch' in sys.modules)", str(tmp_path), "q4f16_1").strip() == "False"


def test_older_x86_levels_give_the_same_logits(built: Callable[[str, str], Built], tmp_path: Path):
    case = built("grouped", "q4f16_1")
    tokens = list(range(60))
    expected = run(case.folder, tokens)
    for level in ("x86-64-v2", "x86-64-v3"):
        folder = tmp_path / level
        folder.mkdir()
        for file in case.folder.iterdir():
            if not file.name.startswith("library"):
                (folder / file.name).symlink_to(file)
        (folder / "metadata.json").unlink()
        tiny.compile_library(folder, case.architecture, tiny.SCHEMES["q4f16_1"], level)
        assert np.abs(run(folder, tokens) - expected).max() < 1e-4 * expected.std()


def run(folder: Path, tokens: list[int]) -> np.ndarray:
    from llm_build.runtime.engine import Engine

    engine = Engine.from_folder(folder)
    return engine.logits(engine.add_sequence(), tokens)


def exported(scheme: str = "q4f16_1") -> tuple[ir.IRModule, dict[str, ir.BaseFunc]]:
    config = architectures.load("llama").from_architecture({**tiny.BASE, "num_hidden_layers": 1})
    model = Model(architectures.load("llama").describe(config), tiny.SCHEMES[scheme], tiny.METADATA)
    module, _ = model.export_tvm(spec=model.functions())
    return module, {variable.name_hint: function for variable, function in module.functions_items()}


def test_schedules_replace_bodies_and_keep_signatures():
    """Before: labelled plain loops with blocks. After: a kernel of the same arguments, no label; graph untouched."""
    module, before = exported()
    after = with_schedules(Schedules("cpu"), Isa(8, True))(module)
    after_by_name = {variable.name_hint: function for variable, function in after.functions_items()}
    assert before.keys() == after_by_name.keys()
    labelled = [name for name, function in before.items() if op.label_of(function)]
    assert len(labelled) >= 7
    for name, function in before.items():
        if name not in labelled:
            ir.assert_structural_equal(function, after_by_name[name])
            continue
        kernel = after_by_name[name]
        assert isinstance(kernel, tirx.PrimFunc)
        assert op.label_of(kernel) is None
        assert len(kernel.params) == len(function.params)
        assert "sblock" in function.script()
        assert "sblock" not in kernel.script()


def test_a_label_without_a_schedule_keeps_its_loops():
    _, before = exported()

    @dataclass(frozen=True)
    class UnheardOf(op.Label):
        op: ClassVar[str] = "unheard_of"

    function = op.with_label(before["silu_mul"], UnheardOf())
    after = with_schedules(Schedules("cpu"), Isa(8, True))(ir.IRModule({"main": function}))["main"]
    ir.assert_structural_equal(after, function.without_attr(op.LABEL))


def test_plain_loops_compute_what_kernels_compute():
    """The meaning of an operation, compiled without any schedule, against its kernel."""
    _, functions = exported("q4f32_1")
    target = machine_of({"kind": "cpu", "cpu": "x86-64-v3", "features": (), "triple": "x86_64-linux-gnu"})
    if not cpu.implied_features("x86-64-v3") <= cpu.host_features():
        pytest.skip("this CPU is not x86-64-v3")
    random = np.random.default_rng(3)
    x = random.standard_normal((5, 64)).astype(np.float32)
    words = random.integers(0, 1 << 32, (128, 8), np.uint32)
    scales = random.random((128, 2)).astype(np.float32)
    plain = next(
        f for f in functions.values() if isinstance(label := op.label_of(f), LinearLabel) and label.weight.n == 128
    )
    kernel = with_schedules(Schedules("cpu"), target.traits)(ir.IRModule({"main": plain}))["main"]
    results = []
    for function in (plain.without_attr(op.LABEL), kernel):
        library = tvm.tirx.build(function.with_attr("global_symbol", "main"), target.tvm)
        out = tvm.runtime.empty((5, 128), "float32")
        library["main"](*(tvm.runtime.tensor(a) for a in (x, words, scales)), out)
        results.append(out.numpy())
    assert np.abs(results[0] - results[1]).max() < 1e-5 * results[0].std()


def test_no_linker_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(link, "which", lambda _name: None)
    monkeypatch.setattr(link, "find_spec", lambda _name: None)
    with pytest.raises(StepError, match=r"no linker found: looked for cc, gcc, clang, ld, ld\.lld") as caught:
        link.link([tmp_path / "a.o"], tmp_path / "a.so")
    assert "pip install ziglang" in caught.value.hint


def test_any_linker_will_do(built: Callable[[str, str], Built], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A plain ld instead of a compiler driver gives a library that works the same."""
    found = link.which
    if not found("ld"):
        pytest.skip("no ld")
    monkeypatch.setattr(link, "which", lambda name: found(name) if name == "ld" else None)
    case = built("grouped", "q0f32")
    for file in case.folder.iterdir():
        if file.suffix in (".bin", ".json") and file.name != "metadata.json":
            (tmp_path / file.name).symlink_to(file)
    tiny.compile_library(tmp_path, case.architecture, tiny.SCHEMES["q0f32"])
    assert np.array_equal(run(tmp_path, [1, 2, 3]), run(case.folder, [1, 2, 3]))


def test_a_linker_that_fails_is_quoted(tmp_path: Path):
    (tmp_path / "a.o").write_text("no object")
    with pytest.raises(StepError, match=r"could not link a\.so"):
        link.link([tmp_path / "a.o"], tmp_path / "a.so")
