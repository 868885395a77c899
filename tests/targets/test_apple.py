"""Libraries for Metal: what a linker makes of them, what their symbols are called, and whether a C++ compiler that is
taught Metal's words takes the kernels."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from llm_build.formats.archive import defined
from tests.conftest import Shell
from tests.targets.conftest import dist, program
from tests.targets.objects import metal_of, objects_of

OF_TVM = {  # what the runtime brings (tvm_ffi/c_api.h and extra/c_env_api.h, tvm/runtime/c_backend_api.h)
    "TVMBackendAllocWorkspace", "TVMBackendFreeWorkspace", "TVMFFIEnvModLookupFromImports",
    "TVMFFIEnvModRegisterSystemLibSymbol", "TVMFFIErrorSetRaisedFromCStrParts", "TVMFFIFunctionCall",
    "TVMFFIHandleInitOnce",
}  # fmt: skip
OF_APPLE = {"dyld_stub_binder", "memcpy", "memset"}
OF_THE_COMPILER = {"___truncsfhf2", "___extendhfsf2"}  # weak: two libraries may both bring them
MOST_BUFFERS, MOST_SHARED_BYTES = 31, 32 << 10  # Metal Feature Set Tables, limits of the families Apple 4 and later
BYTES = {"float": 4, "int": 4, "uint": 4, "half": 2, "short": 2, "ushort": 2, "char": 1, "uchar": 1}
METAL = """
#define kernel
#define device
#define constant const
#define threadgroup
#define thread
typedef unsigned int uint; typedef unsigned short ushort; typedef unsigned char uchar; typedef _Float16 half;
#define VECTORS(type) typedef type type##2 __attribute__((ext_vector_type(2))); \\
    typedef type type##3 __attribute__((ext_vector_type(3))); typedef type type##4 __attribute__((ext_vector_type(4)))
VECTORS(float); VECTORS(int); VECTORS(uint); VECTORS(half);
VECTORS(char); VECTORS(uchar); VECTORS(short); VECTORS(ushort);
namespace metal {
struct mem_flags { static const int mem_threadgroup = 1; };
void threadgroup_barrier(int);
template <typename T, typename F> T as_type(F);
template <typename T, typename C> T select(T, T, C);
#define OF_ONE(name) float name(float); float4 name(float4);
#define OF_TWO(name) float name(float, float); int name(int, int); uint name(uint, uint); float4 name(float4, float4);
OF_ONE(exp2) OF_ONE(log2) OF_ONE(sqrt) OF_ONE(rsqrt) OF_ONE(floor) OF_ONE(rint) OF_ONE(round) OF_ONE(fabs) OF_ONE(abs)
OF_TWO(min) OF_TWO(max)
}
"""


def stubs(folder: Path, names: set[str]) -> Path:
    """A library for the linker that says it has these symbols (tapi's text format, version 4)."""
    text = ", ".join(f"_{name}" if name != "dyld_stub_binder" else name for name in sorted(names))
    path = folder / "stubs.tbd"
    path.write_text(
        "--- !tapi-tbd\ntbd-version: 4\ntargets: [ arm64-ios ]\ninstall-name: '/stubs.dylib'\n"
        f"exports:\n  - targets: [ arm64-ios ]\n    symbols: [ {text} ]\n...\n"
    )
    return path


def linked(folder: Path, libraries: list[Path], names: set[str]) -> subprocess.CompletedProcess[str]:
    whole = [word for library in libraries for word in ("-force_load", str(library))]
    command = [
        program("ld64.lld", "apt-get install lld"), "-dylib",
        "-arch", "arm64", "-platform_version", "ios", "17.0", "17.0",
        "-install_name", "/app.dylib", "-o", str(folder / "app.dylib"), *whole, str(stubs(folder, names)),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


def library_of(shell: Shell, scheme: str) -> Path:
    return dist(shell, f"demo-{scheme}-ios-ios_app") / "lib" / "libmodel_iphone.a"


def test_two_libraries_link_into_one_app(apps: Shell, tmp_path: Path):
    libraries = [library_of(apps, scheme) for scheme in ("q4f16_1", "q4f32_1")]
    done = linked(tmp_path, libraries, OF_TVM | OF_APPLE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "app.dylib").read_bytes()[:4] == b"\xcf\xfa\xed\xfe"


def test_nothing_but_the_runtime_is_left_undefined(apps: Shell, tmp_path: Path):
    said = linked(tmp_path, [library_of(apps, "q4f16_1")], {"dyld_stub_binder"})
    assert said.returncode
    assert set(re.findall(r"undefined symbol: _(\w+)", said.stderr)) <= OF_TVM | OF_APPLE
    assert "TVMFFIFunctionCall" in said.stderr


def test_symbols_start_with_the_name_that_the_app_asks_for(apps: Shell):
    folder = dist(apps, "demo-q4f16_1-ios-ios_app")
    (model,) = json.loads((folder / "bundle" / "mlc-app-config.json").read_text())["model_list"]
    assert re.fullmatch(r"llama_q4f16_1_[0-9a-f]{8}", model["model_lib"])
    names = [name for data in objects_of(folder / "lib" / f"{folder.name}.tar") for name in defined(data)]
    ours = f"_{model['model_lib']}_"
    assert f"{ours}__tvm_ffi__library_bin" in names
    assert f"___tvm_ffi{ours}linear" in names
    others = [name for name in names if not name.startswith((ours, f"___tvm_ffi{ours}"))]
    assert set(others) <= OF_THE_COMPILER


def kernels_of(shell: Shell, scheme: str) -> list[str]:
    """The source of each kernel."""
    name = f"demo-{scheme}-ios"
    texts = metal_of(b"".join(objects_of(dist(shell, name) / f"{name}.tar")))
    assert len(texts) > 20
    assert all(text.count("kernel void") == 1 for text in texts)
    return texts


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f32_1"])
def test_kernels_keep_to_the_limits_of_metal(built: Shell, scheme: str):
    for text in kernels_of(built, scheme):
        assert len(re.findall(r"\[\[ buffer\(\d+\) \]\]", text)) <= MOST_BUFFERS
        shared = re.findall(r"^( *)threadgroup (\w+) \w+\[(\d+)\];", text, re.MULTILINE)
        assert len(shared) == len(re.findall(r"threadgroup \w+ \w+\[", text))
        assert sum(BYTES[kind] * int(count) for _, kind, count in shared) <= MOST_SHARED_BYTES
        assert all(indent == "  " for indent, _, _ in shared), "only in the outermost scope of a kernel"


@pytest.mark.parametrize("scheme", ["q4f16_1", "q4f32_1"])
def test_kernels_are_cpp_with_the_words_of_metal(built: Shell, tmp_path: Path, scheme: str):
    """Not Apple's compiler, but its front end's parent: keywords, types, scopes and names are checked."""
    (tmp_path / "metal_stdlib").write_text(METAL)
    one = "\n".join(f"namespace kernel_{i} {{{text}}}" for i, text in enumerate(kernels_of(built, scheme)))
    text = "#include <metal_stdlib>\n" + one.replace("#include <metal_stdlib>", "")
    done = compiled(text, tmp_path)
    assert done.returncode == 0, done.stderr[:3000]
    done = compiled(text.replace("threadgroup_barrier", "threadgroup_fence", 1), tmp_path)
    assert "error" in done.stderr


def compiled(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    clang = program("clang", "apt-get install clang")
    flags = [
        "-x",
        "c++",
        "-std=c++14",
        "-target",
        "aarch64-linux-gnu",
        "-nostdinc++",
        "-w",
        "-I",
        ".",
        "-fsyntax-only",
        "-",
    ]
    return subprocess.run([clang, *flags], input=text, cwd=folder, capture_output=True, text=True, check=False)
