"""The headers that stand in for TVM's: compiled by emscripten, run by node."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np

from llm_build.targets import webgpu
from tests.browser.conftest import HERE

FFI = ("backtrace", "container", "dtype", "error", "function", "object", "tensor")
FLAGS = ("-std=c++17", "-w", "-DTVM_FFI_USE_LIBBACKTRACE=0", "-sSINGLE_FILE=1", "-sERROR_ON_UNDEFINED_SYMBOLS=0")


def test_headers_do_what_the_runtime_expects(tmp_path: Path):
    """headers.cc checks all but the conversions of float16, which numpy knows too."""
    tree, program = tmp_path / "tree", tmp_path / "headers.js"
    webgpu.lay_out_sources(tree)
    sources = [str(HERE / "headers.cc"), *(f"3rdparty/tvm-ffi/src/ffi/{name}.cc" for name in FFI)]
    include = [f"-I{folder}" for folder in webgpu.INCLUDE]
    subprocess.run(["emcc", *FLAGS, *include, *sources, "-o", str(program)], cwd=tree, check=True, capture_output=True)
    done = subprocess.run(["node", str(program)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    found = np.array([int(word, 16) for word in done.stdout.split()], np.uint32).view(np.float32)
    expected = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found, expected)
