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
    "gpt_neox": "builder.models.gpt_neox",
    "llama": "builder.models.llama",
    "qwen2": "builder.models.qwen2",
    "qwen3": "builder.models.qwen3",
    "olmo2": "builder.models.olmo2",
    "mistral": "builder.models.mistral",
    "mixtral": "builder.models.mixtral",
    "qwen3_moe": "builder.models.qwen3_moe",
    "phi3": "builder.models.phi3",
    "gemma2": "builder.models.gemma2",
    "gemma3_text": "builder.models.gemma3_text",
}


def load(family: str) -> Any:
    """The family's graph module; UserError that lists the families if there is none."""
    if family not in FAMILIES:
        raise UserError(f"no graph for model family {family!r}; there is one for: {', '.join(sorted(FAMILIES))}")
    return import_module(FAMILIES[family])
