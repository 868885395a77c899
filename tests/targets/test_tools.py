"""Apple's compiler and Android's linker are used where they are: stand-ins here, that do the least that can be told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_build.core.errors import StepError
from llm_build.targets import android, apple
from tests.conftest import Shell
from tests.targets.conftest import dist, program
from tests.targets.objects import metal_of, objects_of

XCRUN = """#!/bin/sh
# xcrun -sdk SDK metal|metallib ... -o FILE
[ "$1 $2" = "-sdk iphoneos" ] || { echo "unknown sdk $2" >&2; exit 1; }
for last; do :; done
case "$3" in
  metal) grep -q "kernel void" kernels.metal && echo air > "$last" ;;
  metallib) echo "MTLB of a kernel" > "$last" ;;
esac
"""


CLANG = """#!/bin/sh
# what a compiler's driver would tell the linker
for word; do
  shift
  case "$word" in
    -fPIC) ;;
    -Wl,*) set -- "$@" $(echo "${{word#-Wl,}}" | tr , " ") ;;
    *) set -- "$@" "$word" ;;
  esac
done
exec {linker} "$@"
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def xcrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return script(tmp_path / "xcrun", XCRUN)


@pytest.fixture
def ndk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The least of an NDK: a folder with a version, and a linker by the name of its compiler."""
    linker = program("ld.lld", "apt-get install lld")
    folder = tmp_path / "ndk"
    text = CLANG.format(linker=linker)
    script(folder / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android24-clang", text)
    script(folder / "toolchains/llvm/prebuilt/linux-x86_64/bin/aarch64-linux-android21-clang", "#!/bin/sh\nexit 1\n")
    (folder / "source.properties").write_text("Pkg.Revision = 27.2.12479018\n")
    monkeypatch.setenv("ANDROID_NDK", str(folder))
    return folder


def test_kernels_become_metal_libraries_where_xcrun_is(built: Shell, xcrun: Path):
    built.run("quant=q4f16_1", "target=ios", "name=compiled", "verify=off")
    data = b"".join(objects_of(dist(built, "compiled") / "compiled.tar"))
    assert data.count(b"MTLB of a kernel") > 20
    assert not metal_of(data)


def test_what_metal_refuses_is_said(xcrun: Path):
    with pytest.raises(StepError, match="-sdk macosx metal could not compile the kernels: unknown sdk macosx"):
        apple.compile_kernels("kernel void f() {}", "arm64-apple-macos14")
    with pytest.raises(StepError, match="arm64-linux-gnu names no system with Metal"):
        apple.sdk_of("arm64-linux-gnu")


def test_another_xcode_compiles_again(xcrun: Path):
    with_it = apple.identity()
    xcrun.unlink()
    assert with_it.startswith("metallib")
    assert apple.identity() == "metal"


def test_the_ndk_links_a_library(built: Shell, ndk: Path):
    built.run("quant=q4f16_1", "target=android", "target.library=so", "name=linked", "verify=off")
    data = (dist(built, "linked") / "linked.so").read_bytes()
    assert data[:4] == b"\x7fELF"
    assert int.from_bytes(data[16:18], "little") == 3  # ET_DYN
    assert int.from_bytes(data[18:20], "little") == 183  # EM_AARCH64
    assert b"\0__tvm_ffi_linear\0" in data  # alone in its file, it needs no prefix


def test_no_ndk(built: Shell, ndk: Path):
    for file in (ndk / "toolchains/llvm/prebuilt/linux-x86_64/bin").iterdir():
        if "24" in file.name:
            file.unlink()
    with pytest.raises(StepError, match="android24-clang or later"):
        android.find_clang()
    (ndk / "source.properties").unlink()
    said = built.run("quant=q4f16_1", "target=android", "target.library=so", "verify=off", code=2).stderr
    assert "target=android needs the Android NDK, and none is where ANDROID_NDK_HOME" in said
    assert "build target=android" in said
