"""The kinds of input: how a case is made from good files, and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

Case = Path  # the folder of a case, which is the current one while it is read


@dataclass(frozen=True)
class Kind:
    """``prepare``: makes the case in a folder from the samples. ``read``: gives it to `build`, or to what a step does
    with it; any result is fine, and so is a user's error. ``share``: how many cases of a round are of this kind; quick
    ones have more."""

    name: str
    prepare: Callable[[Random, Path, Case], None]
    read: Callable[[Random, Case], object]
    share: int


_LOADED = (  # once, before workers are forked
    "torch", "torch._weights_only_unpickler", "hydra", "omegaconf", "fsspec.implementations.local", "tokenizers",
    "yaml", "cryptography.hazmat.primitives.asymmetric.ed25519", "llm_build.cli.plan", "llm_build.cli.diff",
    "llm_build.cli.pull",
    "llm_build.cli.verify_provenance", "llm_build.cli.generate", "llm_build.cli.list", "llm_build.cli.graph",
    "llm_build.cli.hydra", "llm_build.config.hydra_plugins", "llm_build.app.merge", "llm_build.executors.local",
    "blake3",
    "llm_build.report.matrix", "llm_build.planner.graph.graph",
)  # fmt: skip


def all_kinds() -> dict[str, Kind]:
    for name in _LOADED:
        import_module(name)
    from tests.fuzz import kinds_of_checkpoints, kinds_of_commands, kinds_of_stores

    modules = (kinds_of_checkpoints, kinds_of_commands, kinds_of_stores)
    return {kind.name: kind for module in modules for kind in module.KINDS}
