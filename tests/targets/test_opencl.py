"""Libraries for OpenCL: every kernel compiled, and the demo run by PoCL on this CPU, through everything but a phone."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.runtime.engine import Engine
from tests.conftest import ROOT, Shell
from tests.targets.conftest import dist, program
from tests.targets.objects import objects_of, opencl_of

PROMPT, TOKENS = [5, 17, 300, 21, 8, 112, 40], 24
MOST_THREADS, MOST_SHARED_BYTES = (
    256,
    32 << 10,
)  # of Adreno and Mali alike: CL_DEVICE_MAX_WORK_GROUP_SIZE, ..._LOCAL_MEM_SIZE
BYTES = {"float": 4, "int": 4, "uint": 4, "half": 2}
NOT_HERE = {  # of forks, speculation, batched prefill, and the second launch of decoding in a long context
    "kv_copy_page", "kv_compact", "kv_debug_get", "take_rows", "attention_decode",
}  # fmt: skip
HERE = "demo-q4f32_1-here"


@pytest.fixture(scope="module")
def ran(built: Shell, pocl: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The library of target=android, its host code for this machine, run by PoCL."""
    built.run("quant=q4f32_1", "target=android", "target.triple=x86_64-linux-gnu", f"name={HERE}", "verify=off")
    folder = dist(built, HERE)
    objects = tmp_path_factory.mktemp("here") / "library.tar"
    objects.write_bytes((folder / f"{HERE}.tar").read_bytes())
    (prefix,) = set(re.findall(rb"(llama_q4f32_1_[0-9a-f]{8}_)__tvm_ffi__library_bin\0", b"".join(objects_of(objects))))
    words = [str(objects), str(folder), prefix.decode(), json.dumps(PROMPT), str(TOKENS)]
    command = [sys.executable, "-m", "tests.targets.opencl", *words]
    caches = {"POCL_CACHE_DIR": str(objects.parent), "PYOPENCL_NO_CACHE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | caches, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_demo_says_on_pocl_what_it_says_on_the_cpu(built: Shell, ran: dict[str, Any]):
    built.run("quant=q4f32_1", "verify=off")
    engine = Engine.from_folder(dist(built, "demo-q4f32_1-cpu"))
    sequence = engine.add_sequence()
    logits = engine.prefill(sequence, PROMPT)
    assert np.abs(logits - np.array(ran["logits"])).max() < 1e-3 * logits.std()
    tokens = [int(logits.argmax())]
    for _ in range(TOKENS - 1):
        tokens.append(int(engine.decode(sequence, tokens[-1]).argmax()))
    assert ran["tokens"] == tokens
    logits = engine.logits(sequence, PROMPT)
    assert np.abs(logits - np.array(ran["later"])).max() < 1e-3 * logits.std()


def test_no_launch_is_too_wide_for_a_phone(ran: dict[str, Any]):
    launched = ran["threads"]
    assert max(launched.values()) <= MOST_THREADS
    never = {re.sub(r"^llama_q4f32_1_[0-9a-f]{8}_|_kernel.*", "", name) for name in set(ran["kernels"]) - set(launched)}
    assert never <= NOT_HERE


def source_of(shell: Shell, scheme: str) -> str:
    name = f"demo-{scheme}-android"
    return opencl_of(b"".join(objects_of(dist(shell, name) / f"{name}.tar")))


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f32_1"])
def test_every_kernel_compiles(built: Shell, tmp_path: Path, scheme: str):
    """With the compiler that PoCL's, Adreno's and Mali's are made of; PoCL for CPUs itself has no half precision."""
    source = source_of(built, scheme)
    assert ("half" in re.sub(r"cl_(khr|amd)_fp16|Half", "", source)) == (scheme == "q4f16_1")
    assert compiled(source) == ""
    assert "error: " in compiled(source.replace("__local float", "__local", 1))


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f32_1"])
def test_kernels_keep_to_the_limits_of_phones(built: Shell, scheme: str):
    kernels = source_of(built, scheme).split("__kernel void ")[1:]
    for kernel in kernels:
        arrays = re.findall(r"__local (\w+) \w+\[(\d+)\];", kernel)
        assert len(arrays) == len(re.findall(r"__local \w+ \w+\[", kernel))
        assert sum(BYTES[kind] * int(count) for kind, count in arrays) <= MOST_SHARED_BYTES
    assert any("__local" in kernel for kernel in kernels)


def compiled(source: str) -> str:
    """What the compiler says of it."""
    features = ["-Xclang", "-finclude-default-header", "-Xclang", "-cl-ext=+cl_khr_fp16"]
    flags = ["-x", "cl", "-cl-std=CL1.2", *features, "-target", "spir64", "-Werror", "-fsyntax-only", "-"]
    clang = program("clang", "apt-get install clang")
    return subprocess.run([clang, *flags], input=source, capture_output=True, text=True, check=False).stderr
