"""The graphs of the model families. The table holds module names, not modules, for the reason that
builder/architectures gives. Every module exports:

    Model(config, scheme, metadata)   an nn.Module with ``metadata``, ``vocab``, ``hidden``, ``cache`` (a CacheLayout),
                                      and ``functions()``: the spec that ``export_tvm`` takes
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from builder.core.errors import UserError

FAMILIES: dict[str, str] = {  # family -> module
    "llama": "builder.models.llama",
}


def load(family: str) -> Any:
    """The family's graph module; UserError that lists the families if there is none."""
    if family not in FAMILIES:
        raise UserError(f"no graph for model family {family!r}; there is one for: {', '.join(sorted(FAMILIES))}")
    return import_module(FAMILIES[family])
