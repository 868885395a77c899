"""How MLC's apps know a library that is linked into them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from llm_build.core.digest import canonical

APPS = {"ios_app": ("metal", "ios"), "android_app": ("opencl", "android")}  # package.kind: target.kind, in its triple


def package_fits(package: str, kind: str, triple: str, library: str) -> bool:
    """Whether a package that is an app's can hold a library for a target."""
    wanted, system = APPS[package]
    return kind == wanted and system in triple and library == "tar"


def library_name(params: Mapping[str, Any]) -> str:
    """The name that an app's configuration gives: ``<family>_<scheme>_<8 hex digits of all that is compiled in>``, as
    MLC itself names libraries, so that two models in one app never have the same symbols. ``params``: of lower."""
    whole = canonical([params[key] for key in ("family", "architecture", "scheme", "metadata")])
    name = f"{params['family']}_{params['scheme']['name']}_{hashlib.sha256(whole).hexdigest()[:8]}"
    return re.sub(r"\W", "_", name)


def symbol_prefix(name: str) -> str:
    """What the runtime puts before the names of the functions of a library with this name."""
    return f"{name}_"
