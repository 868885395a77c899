"""Attention on tensor cores: which caches get it, and that it becomes machine code. tools/gpu/attention.py runs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import tvm

from llm_build.lowering.backends import cuda as backend
from llm_build.lowering.backends import gpu
from llm_build.lowering.choices import recording
from llm_build.lowering.machine import machine_of
from llm_build.lowering.progress import StageProgress
from llm_build.lowering.schedules.gpu import attention, flash_attention
from llm_build.ops.kv_cache import CacheLayout
from llm_build.targets import cuda
from tests.tvm.test_gpu_code import target

LAYOUT = CacheLayout(2, 8, 2, 128, 0, (), "float16")
ARCH = ("sm_80", "sm_89", "sm_90a")
MAKERS = (attention.prefill_ragged, attention.prefill_paged)


def is_flash(layout: CacheLayout, arch: Sequence[str] = ARCH) -> bool:
    """Whether both kernels of many rows call the functions for tensor cores, and say so."""
    traits = machine_of(target("cuda", arch=list(arch))).traits
    with recording() as choices:
        calls = ["flash_" in str(make(layout, traits)) for make in MAKERS]
    assert calls[0] == calls[1] == bool(choices)
    return calls[0]


def test_caches_of_16_bits_get_it_from_sm_80_on():
    assert is_flash(LAYOUT)
    assert is_flash(replace(LAYOUT, dtype="bfloat16", window=64, sinks=4, soft_cap=50.0))
    assert not is_flash(replace(LAYOUT, dtype="float32"))
    assert not is_flash(LAYOUT, ["sm_75", "sm_90a"])
    heads = {
        width: is_flash(replace(LAYOUT, head_dim=width)) for width in (16, 40, 64, 80, 96, 112, 128, 192, 256, 272)
    }
    assert {width for width, flash in heads.items() if not flash} == {40, 272}


def test_its_memory_fits_every_gpu():
    """A block may have 99 KB on sm_86 and sm_89, and 227 KB on sm_90."""
    for arch, most in ((ARCH, 99), (("sm_90a",), 227)):
        traits = machine_of(target("cuda", arch=list(arch))).traits
        for width in range(16, 257, 16):
            tile = flash_attention.flash_tile_of(replace(LAYOUT, head_dim=width), traits)
            assert tile is not None
            assert tile.shared_bytes(width) <= most * 1024
            assert tile.threads % 128 == 0
            assert traits.wgmma == isinstance(tile, flash_attention.FlashWideTile)


def machine_code(
    layouts: Sequence[CacheLayout], arch: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[str, bytes]:
    """The source and the machine code of the kernels of many rows for caches of these layouts."""
    if cuda.find_compiler() is None or (len(arch) > 1 and cuda.find_fatbinary() is None):
        pytest.skip("no CUDA compiler for these architectures")
    machine, found, compiled = machine_of(target("cuda", arch=list(arch))), [], cuda.compile_kernels

    def kept(source: str, names: Sequence[str]) -> bytes:
        found.append((source, compiled(source, names)))
        return found[-1][1]

    monkeypatch.setattr(cuda, "compile_kernels", kept)
    functions: dict[str, Any] = {}
    for i, layout in enumerate(layouts):
        for make in MAKERS:
            name = f"{make.__name__}_{i}"
            functions[name] = make(layout, machine.traits).with_attr("global_symbol", name)
    module = tvm.IRModule(functions)
    for _, transform in backend.passes(machine):
        module = transform(module)
    backend.generate(module, machine, StageProgress(lambda *_: None, 0))
    return found[0]


def test_it_becomes_machine_code_for_each_architecture(monkeypatch: pytest.MonkeyPatch):
    source, code = machine_code([LAYOUT], ARCH, monkeypatch)
    assert source.count("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32") == 1
    for name in ("flash_paged", "flash_ragged"):
        assert source.count(f"{name}<128, 4, 128, 2, 64, 1, __half, __half, __half>(") == 1
    assert code.startswith(b"\x50\xed\x55\xba")  # a fatbin


def test_wide_heads_and_windows_become_machine_code(monkeypatch: pytest.MonkeyPatch):
    capped = replace(LAYOUT, dtype="bfloat16", head_dim=80, window=64, sinks=4, soft_cap=30.0)
    source, code = machine_code([replace(LAYOUT, head_dim=256, query_heads=14), capped], ["sm_80"], monkeypatch)
    assert "flash_ragged<256, 7, 64, 1, 64, 1, __half, " in source
    assert "flash_paged<80, 4, 128, 2, 64, 1, __nv_bfloat16, " in source
    assert len(code) > 10_000


def test_on_sm_90a_alone_it_is_wgmma(monkeypatch: pytest.MonkeyPatch):
    capped, launches = replace(LAYOUT, dtype="bfloat16", head_dim=80, window=64, sinks=4, soft_cap=30.0), []
    real = gpu.source_code

    def kept(functions: Any, machine: Any) -> Any:
        launches.extend(
            [str(tag) for tag in f.attrs["tirx.kernel_launch_params"]] for f in functions.functions.values()
        )
        return real(functions, machine)

    monkeypatch.setattr(gpu, "source_code", kept)
    source, code = machine_code([LAYOUT, capped], ["sm_90a"], monkeypatch)
    assert {tuple(tags[-2:]) for tags in launches} == {
        ("tirx.use_programtic_dependent_launch", "tirx.use_dyn_shared_memory")  # TVM's runtime wants it last
    }
    assert "flash_wide_paged<128, 4, 128, 128, __half, __half, __half>(" in source
    assert "flash_wide_ragged<80, 4, 128, 128, __nv_bfloat16, __nv_bfloat16, __nv_bfloat16>(" in source
    assert set(re.findall(r"wgmma.mma_async.sync.aligned.m64n(\d+)k16", source)) == {"80", "128"}
    assert len(code) > 10_000
