"""Libraries for GPUs, made and read here, run nowhere: tests/gpu and tests/browser run them."""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import tvm
import yaml

from llm_build import architectures
from llm_build.config.schema import Quant
from llm_build.config.strict import parse
from llm_build.core.errors import StepError, UserError
from llm_build.lowering import pipeline
from llm_build.lowering.backends import dependent_launch
from llm_build.lowering.backends import gpu as gpu_code
from llm_build.lowering.kernel_modules import Schedules
from llm_build.lowering.machine import machine_of
from llm_build.lowering.passes.kernels import check_covered, with_schedules
from llm_build.lowering.schedules.gpu.block import SHARED_BYTES, THREADS, GpuTraits
from llm_build.models.decoder import Model
from llm_build.ops.emit import label_of
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.quant import layout
from llm_build.steps import lower
from llm_build.targets import cuda
from tests.conftest import ROOT
from tests.matrix.checkpoints import FAMILIES, SIZES
from tests.tvm import tiny

TRIPLES = {
    "cuda": "x86_64-linux-gnu", "webgpu": "wasm32-unknown-unknown-wasm", "metal": "arm64-apple-macos14",
    "opencl": "aarch64-linux-android",
}  # fmt: skip
METADATA = {**tiny.METADATA, "context_window_size": 256, "sliding_window_size": -1}
EARLY_READERS = ("linear", "gated_linear", "rms_norm", "attention_decode")
STORAGE_BUFFERS = 10  # of one kernel: what WebLLM asks of a browser


def target(kind: str, **others: Any) -> dict[str, Any]:
    limits = dict.fromkeys(
        ("max_threads_per_block", "max_shared_memory_bytes", "max_binding_bytes", "max_storage_buffers"), 0
    )
    whole = {"kind": kind, "triple": TRIPLES[kind], "cpu": "", "features": [], "arch": [], "limits": limits}
    return {**whole, "library": "so" if kind == "cuda" else "tar", "supports": [], **others}


def params(wanted: dict[str, Any], scheme: str = "q4f16_1") -> dict[str, Any]:
    found = tiny.lower_params(tiny.BASE, tiny.SCHEMES[scheme])
    return {**found, "target": wanted}


def source(kind: str, monkeypatch: pytest.MonkeyPatch, folder: Path, scheme: str = "q4f16_1") -> dict[str, str]:
    """The device code of each kernel of a tiny llama, with the declarations before it."""
    found: list[str] = []
    build = gpu_code.source_code

    def kept(functions: Any, machine: Any) -> Any:
        module = build(functions, machine)
        found.append(str(module.inspect_source()))
        return module

    monkeypatch.setattr(gpu_code, "source_code", kept)
    lower.run(params(target(kind), scheme), {}, tiny.FolderOut(folder))
    start = {"webgpu": r"^// Function: (\w+)", "metal": r"^kernel void (\w+)\(", "opencl": r"^__kernel void (\w+)\("}[
        kind
    ]
    parts = re.split(start, found[0], flags=re.MULTILINE)
    return {name: body for name, body in zip(parts[1::2], parts[2::2], strict=True) if "{" in body}


def test_webgpu_kernels_stay_within_what_browsers_have(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    kernels = source("webgpu", monkeypatch, tmp_path, "q4f32_1")
    assert len(kernels) > 25
    for name, text in kernels.items():
        (threads,) = re.findall(r"@workgroup_size\((\d+), 1, 1\)", text)
        assert int(threads) <= THREADS, name
        assert text.count("var<storage") <= STORAGE_BUFFERS, name
        assert "f16" not in text, name


def test_shared_memory_of_every_kernel_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name, text in source("metal", monkeypatch, tmp_path).items():
        arrays = re.findall(r"threadgroup (float|int|uint) \w+\[(\d+)\]", text)
        assert sum(4 * int(count) for _, count in arrays) <= SHARED_BYTES, name
        assert len(re.findall(r"\[\[ buffer\(\d+\) \]\]", text)) <= 31, name


def test_no_kernel_computes_with_64_bits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The runtime's own scalars come as such; what is between the braces casts them first."""
    for name, text in source("opencl", monkeypatch, tmp_path).items():
        body = text.partition("{")[2].partition("__kernel")[0]
        assert "long" not in body, name
        assert "double" not in body, name


def test_a_cuda_library_holds_machine_code_for_each_architecture_and_no_source(tmp_path: Path):
    if cuda.find_compiler() is None or cuda.find_fatbinary() is None:
        pytest.skip("no CUDA compiler for several architectures")
    lower.run(params(target("cuda", arch=["sm_80", "sm_90a"])), {}, tiny.FolderOut(tmp_path))
    library = (tmp_path / "library.so").read_bytes()
    assert b"__global__" not in library
    assert b"\x50\xed\x55\xba" in library  # a fatbin
    assert library.count(b"\x50\xed\x55\xba") == 1


KERNEL = r'^extern "C" __global__ void (?:__launch_bounds__\(\d+\) )?(\w+)\([^;{]*\{\n(.*?)^}'


def cuda_kernels(monkeypatch: pytest.MonkeyPatch, folder: Path, params: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The source of a library and the bodies of its kernels, which the compiler takes."""
    if cuda.find_compiler() is None:
        pytest.skip("no CUDA compiler")
    found, compiled = [], cuda.compile_kernels

    def kept(text: str, arch: Sequence[str]) -> bytes:
        found.append(text)
        return compiled(text, arch)

    monkeypatch.setattr(cuda, "compile_kernels", kept)
    lower.run(params, {}, tiny.FolderOut(folder))
    source = found[-1]  # before it, for several GPUs, the kernels that sum over them
    return source, dict(re.findall(KERNEL, source, re.MULTILINE | re.DOTALL))


def test_products_of_two_gpus_send_what_they_make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Those of one row, where a group of threads has a pair of outputs. The sum takes its turn before the next kernel
    may start, and waits for the kernel before when it is done."""
    wide = {**tiny.BASE, "hidden_size": 2048, "num_hidden_layers": 1}
    found = tiny.lower_params(wide, tiny.SCHEMES["q0f16"])
    metadata = {**found["metadata"], "tensor_parallel_shards": 2}
    wanted = {**found, "metadata": metadata, "target": target("cuda", arch=["sm_90a"])}
    _, kernels = cuda_kernels(monkeypatch, tmp_path, wanted)
    assert {name for name, body in kernels.items() if "send_pair(" in body} == {
        "sent_linear_kernel", "sent_linear1_kernel",
    }  # fmt: skip
    order = [kernels["sent_norm_kernel"].index(f"{call}(") for call in ("take_turn", "next_may_start", "sent_norm")]
    assert order == sorted(order)
    assert kernels["sent_norm_kernel"].rstrip().endswith("inputs_ready();")
    assert "keep_peers(" in kernels["llm_build_set_peers_kernel"]


def test_products_that_cannot_send_leave_the_sum_to_a_call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    found = tiny.lower_params(tiny.BASE, tiny.SCHEMES["q0f16"])
    metadata = {**found["metadata"], "tensor_parallel_shards": 2}
    wanted = {**found, "metadata": metadata, "target": target("cuda", arch=["sm_90a"])}
    _, kernels = cuda_kernels(monkeypatch, tmp_path, wanted)
    assert "sent_norm_kernel" not in kernels
    assert "send_pair(" not in "".join(kernels.values())
    assert b"llm_build.sum_norm" in (tmp_path / "library.so").read_bytes()


def test_from_sm_90_on_each_kernel_starts_early_and_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """All wait before they read anything, but for products and norms, which ask for their weights first, and attention
    of one token, which looks into the page table. Products of many rows do not start early."""
    source, bodies = cuda_kernels(monkeypatch, tmp_path, params(target("cuda", arch=["sm_90a"])))
    assert len(bodies) > 25
    later = set()
    for name, body in bodies.items():
        first, second, *_ = body.splitlines()
        assert first.strip() == "next_may_start();", name
        assert body.count("inputs_ready();") >= 1, name
        if second.strip() != "inputs_ready();":
            later.add(name)
            read = set(re.findall(r"(\w+)_ptr(?: \+|\[)", body.partition("inputs_ready();")[0]))
            known = {"own", "block_memory", "q_weight", "q_scale", "weight"}  # or of the block itself
            table = {"page_indptr", "page_table", "last_page_len"}
            assert read <= (known | table if name.startswith("attention_decode") else known), name
    assert {name for name in later if not name.startswith(EARLY_READERS)} == set()
    assert {"attention_decode_kernel", "attention_decode_kernel_1", "gated_linear_kernel", "rms_norm_kernel"} < later
    products = {name for name, body in bodies.items() if "tensor_products::product<" in body}
    assert products
    assert products <= {name for name, body in bodies.items() if "starts_late();" in body}
    assert "__restrict__" not in source


def test_kernels_of_older_architectures_do_not_start_early():
    assert dependent_launch.is_possible(target("cuda", arch=["sm_90a", "sm_100"]))
    assert not dependent_launch.is_possible(target("cuda", arch=["sm_80", "sm_90a"]))
    assert not dependent_launch.is_possible(target("webgpu"))


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> cuda.Compiler:
    """A machine with a C compiler and no C++ compiler, where nvcc is of no use."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("cc", "gcc", "ld", "as"):
        if found := which(name):
            (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    compiler = cuda.find_compiler()
    if compiler is None:
        pytest.skip("no nvidia-cuda-nvrtc, or no headers for it: pip install 'llm-build[cuda]'")
    assert compiler.name == "NVRTC"
    return compiler


def test_nvrtc_alone_makes_a_cuda_library(nvrtc: cuda.Compiler, tmp_path: Path):
    """Machine code for one architecture, and no source; the numbers are those of ELF's header."""
    lower.run(params(target("cuda", arch=["sm_90a"])), {}, tiny.FolderOut(tmp_path))
    library = (tmp_path / "library.so").read_bytes()
    start = library.index(b"\x7fELF", 4)
    assert library.find(b"\x7fELF", start + 4) == -1
    assert int.from_bytes(library[start + 18 : start + 20], "little") == 190  # EM_CUDA
    assert int.from_bytes(library[start + 48 : start + 52], "little") >> 8 & 0xFF == 90  # e_flags: the architecture
    assert b"__global__" not in library
    assert b".version" not in library  # PTX


def test_what_nvrtc_refuses_is_said(nvrtc: cuda.Compiler):
    with pytest.raises(StepError, match=r"could not compile the kernels for sm_90a: kernels.cu\(1\): error: this"):
        cuda.compile_kernels("nothing", ["sm_90a"])


def test_nvrtc_and_fatbinary_make_code_for_several_architectures(nvrtc: cuda.Compiler):
    if cuda.find_fatbinary() is None:
        pytest.skip("no fatbinary")
    made = cuda.compile_kernels('extern "C" __global__ void nothing() {}', ["sm_80", "sm_90a"])
    assert made.startswith(b"\x50\xed\x55\xba")
    assert made.count(b"\x02\x00\x01\x01") == 2  # entries of machine code


@pytest.mark.parametrize("kind", ["webgpu", "metal"])
def test_objects_are_the_same_each_time_and_know_no_folder(kind: str, tmp_path: Path):
    for name in ("one", "two longer"):
        (tmp_path / name).mkdir()
        lower.run(params(target(kind)), {}, tiny.FolderOut(tmp_path / name))
    one, two = ((tmp_path / name / "library.tar").read_bytes() for name in ("one", "two longer"))
    assert one == two
    assert str(tmp_path).encode() not in one
    with tarfile.open(tmp_path / "one" / "library.tar") as archive:
        assert {member.mtime for member in archive.getmembers()} == {0}
        assert all(member.name.endswith(".o") for member in archive.getmembers())


@pytest.mark.parametrize("family", sorted(architectures.FAMILIES))
def test_every_label_of_every_family_has_a_kernel(family: str):
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]}).to_dict()
    for name in ("q4f16_1", "w8a8"):
        scheme = table_of_choice(name)
        described = architectures.load(family)
        model = Model(described.describe(described.from_hf(config)), scheme, METADATA)
        module, _ = model.export_tvm(spec=model.functions())
        labels = {label.op for function in module.functions.values() if (label := label_of(function))}
        assert labels <= Schedules("gpu").keys()
        after = with_schedules(Schedules("gpu"), GpuTraits(THREADS, SHARED_BYTES))(module)
        assert not any(label_of(function) for function in after.functions.values())


def table_of_choice(name: str) -> layout.Scheme:
    """A choice of conf/quant."""
    table = yaml.safe_load((ROOT / "conf" / "quant" / f"{name}.yaml").read_text())
    return layout.parse_scheme(scheme_of(parse(Quant, table, "quant")))


def test_an_operation_without_a_kernel_is_named():
    config = architectures.load("llama").from_architecture({**tiny.BASE, "num_hidden_layers": 1})
    model = Model(architectures.load("llama").describe(config), tiny.SCHEMES["q4f16_1"], tiny.METADATA)
    module, _ = model.export_tvm(spec=model.functions())
    some = {name: make for name, make in Schedules("gpu").items() if name != "silu_mul"}
    with pytest.raises(StepError, match="there is no kernel for silu_mul on a GPU"):
        check_covered(module, some)


def test_a_device_too_small_is_refused():
    small = target("webgpu", limits={**target("webgpu")["limits"], "max_shared_memory_bytes": 16384})
    with pytest.raises(UserError, match=r"32768 bytes of shared memory; found .* 16384"):
        machine_of(small)


def test_identical_layers_are_lowered_once(tmp_path: Path):
    """Twice the layers, the same kernels."""
    counts = []
    for layers in (1, 3):
        config = architectures.load("llama").from_architecture({**tiny.BASE, "num_hidden_layers": layers})
        model = Model(architectures.load("llama").describe(config), tiny.SCHEMES["q4f16_1"], tiny.METADATA)
        module, _ = model.export_tvm(spec=model.functions())
        machine = machine_of(target("webgpu"))
        passes = pipeline.graph_passes(machine, model, "llama", "q4f16_1")
        lowered = pipeline.compile_library(module, passes, machine, tmp_path / "x.tar", lambda *_: None)
        counts.append(sum(1 for f in lowered.functions.values() if isinstance(f, tvm.tirx.PrimFunc)))
    assert counts[0] == counts[1]


def test_a_7b_llama_is_lowered_in_seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Everything but the CUDA compiler: no more than 30 s of CPU time, which runs once for all layers."""
    sources: list[str] = []
    real = cuda.compile_kernels

    def compiled(source: str, arch: Any) -> bytes:
        sources.append(source)
        return real('extern "C" __global__ void nothing() {}', arch)

    if cuda.find_compiler() is None:
        pytest.skip("no CUDA compiler")
    monkeypatch.setattr(cuda, "compile_kernels", compiled)
    shape = {
        **tiny.BASE, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "head_dim": 128,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    }  # fmt: skip
    found = {**params(target("cuda", arch=["sm_90a"])), "architecture": shape}
    metadata = {**tiny.METADATA, "context_window_size": 4096, "prefill_chunk_size": 2048}
    started = time.process_time()
    lower.run({**found, "metadata": metadata}, {}, tiny.FolderOut(tmp_path))
    assert time.process_time() - started < 30
    (source,) = sources
    assert source.count("__launch_bounds__") // 2 < 100  # declared, and defined
