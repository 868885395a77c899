"""Libraries for arm64, built here and run under emulation: ``python -m tools.arm64 FOLDER [CELL ...]``

On an x86-64 machine with Debian's apt-get and a network: FOLDER/machine gets qemu-user, an arm64 Debian's Python and
libraries, and the arm64 wheels of TVM and numpy; nothing is installed. Then tools.arm64.check runs there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

from llm_build.app.merge import request_of
from llm_build.cli.arguments import parse
from llm_build.runtime.engine import Engine
from tests.conftest import ROOT, Shell
from tools.gpu.prepare import checkpoint, keep_references, said

CELLS = ("llama-q0f16", "llama-q3f16_1", "llama-q4f16_1", "llama-w8a8", "gpt_neox-q4f16_1", "gemma2-q4f16_1",
         "mixtral-q4f16_1")  # fmt: skip
DEBIAN = ("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libgcc-s1", "libstdc++6",
          "zlib1g", "libexpat1", "libssl3", "libffi8", "libbz2-1.0", "liblzma5", "libzstd1", "libuuid1")  # fmt: skip
WHEELS = ("apache-tvm", "apache-tvm-ffi", "numpy", "ml_dtypes", "typing_extensions")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux2014_aarch64", "manylinux_2_17_aarch64")


def build(folder: Path, cell: str) -> None:
    """FOLDER/<cell>/: the library for arm64 with its weights, references, and what the x86-64 library says."""
    family, scheme = cell.split("-")
    shell = Shell(folder / "work", folder / "store")
    shell.folder.mkdir(exist_ok=True)
    os.environ["LLM_BUILD_STORE"] = str(shell.store)
    model = ["model=demo"] if family == "llama" else ["model=auto", f"model.source={checkpoint(shell.folder, family)}"]
    words = [*model, f"quant={scheme}", "verify.tokens=128", "verify.window=64", f"name={cell}"]
    for place in ("host", "arm64"):
        shell.run("build", *words, f"target.cpu={place}", f"dist.path={shell.folder / place}")
    into, here = folder / cell, shell.folder / "host" / cell
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(shell.folder / "arm64" / cell, into / "artifact")
    keep_references(request_of(parse([*words, "target=cpu", f"dist.path={shell.folder / 'host'}"]).build), into)
    (into / "cpu.json").write_text(json.dumps(said(Engine.from_folder(here), here)))


def make_machine(folder: Path) -> None:
    """An arm64 Debian that has what a library needs, unpacked, and the emulator."""
    for name in ("lists/partial", "cache/archives/partial", "debs", "wheels", "root", "site"):
        (folder / name).mkdir(parents=True)
    apt = ["apt-get", "-qq", *(f"-o{key}" for key in (
        "APT::Architecture=arm64", "APT::Architectures=arm64", f"Dir::State::Lists={folder / 'lists'}",
        f"Dir::Cache={folder / 'cache'}", "Dir::State::Status=/dev/null",
    ))]  # fmt: skip
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *DEBIAN], cwd=folder / "debs", check=True)
    subprocess.run(["apt-get", "-qq", "download", "qemu-user-static"], cwd=folder / "debs", check=True)
    for package in (folder / "debs").iterdir():
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version=3.11"]
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    subprocess.run([*pip, *(f"--platform={p}" for p in PLATFORMS), "-d", folder / "wheels", *wanted], check=True)
    for wheel in (folder / "wheels").iterdir():
        zipfile.ZipFile(wheel).extractall(folder / "site")


def main() -> int:
    folder, cells = Path(sys.argv[1]).absolute(), sys.argv[2:] or CELLS
    machine = folder / "machine"
    if not machine.exists():
        make_machine(machine)
    for cell in cells:
        build(folder, cell)
        print(cell, "built", flush=True)
    emulator = [
        machine / "root/usr/bin/qemu-aarch64-static",
        "-L",
        machine / "root",
        machine / "root/usr/bin/python3.11",
    ]
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tools/path:{machine / 'site'}", "PYTHONDONTWRITEBYTECODE": "1",
        "TVM_NUM_THREADS": "1",
    }  # fmt: skip
    return subprocess.run([*emulator, "-m", "tools.arm64.check", folder], env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
