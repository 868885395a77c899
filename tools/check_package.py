"""Builds the wheel and the sdist, looks into both, and installs each in a fresh environment.

    python -m tools.check_package FOLDER [--site FOLDER]

The packages go to FOLDER. In each environment `build --version` and `build plan` must work, in a folder without this
repository. With --site, dependencies come from that site-packages instead of an index. Needs `pip install build`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDIST = (
    "LICENSE",
    "NOTICE",
    "LICENSES/PSF-2.0.txt",
    "conf/build.yaml",
    "recipes/demo.yaml",
    "builder/__main__.py",
    "pyproject.toml",
)
WHEEL = (
    "llm_build/conf/build.yaml",
    "llm_build/recipes/demo.yaml",
    "llm_build/demo/config.json",
    "llm_build/web_page/index.html",
    "llm_build/py.typed",
)


def build(folder: Path) -> tuple[Path, Path]:
    """The wheel, which is built from the sdist, and the sdist."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    (wheel,), (sdist,) = folder.glob("llm_build-*.whl"), folder.glob("llm_build-*.tar.gz")
    return wheel, sdist


def missing_files(wheel: Path, sdist: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    licenses = {name.rpartition("licenses/")[2] for name in names if ".dist-info/licenses/" in name}
    missing = [f"{wheel.name}: {name}" for name in WHEEL if name not in names]
    missing += [f"{wheel.name}: {name}" for name in SDIST[:3] if name not in licenses]
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    return missing + [f"{sdist.name}: {name}" for name in SDIST if name not in names]


def install(package: Path, folder: Path, site: Path | None) -> None:
    """Installs the package in a new environment and lets it say its version and its plan."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    program, environment = folder / "bin", {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = ["--quiet", "--no-deps"] if site else ["--quiet"]
    subprocess.run([program / "pip", "install", *words, str(package)], check=True, env=environment)
    if site:
        (own,) = folder.glob("lib/python*/site-packages")
        (own / "dependencies.pth").write_text(f"{site}\n")
    environment["LLM_BUILD_STORE"] = str(folder / "store")
    for command in (["--version"], ["plan"]):
        done = subprocess.run(
            [program / "build", *command], cwd=folder, env=environment, text=True, check=True, stdout=subprocess.PIPE
        )
        print(f"{package.name}: build {' '.join(command)}: {done.stdout.splitlines()[0]}", flush=True)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("folder", type=Path)
    options.add_argument("--site", type=Path)
    arguments = options.parse_args()
    packages = build(arguments.folder)
    if missing := missing_files(*packages):
        print("missing: " + ", ".join(missing))
        return 1
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            install(package, Path(folder), arguments.site)
    return 0


if __name__ == "__main__":
    sys.exit(main())
