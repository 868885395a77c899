"""The model families: which exist, and where each one is described.

The table holds module names, not modules: a step that works on one family reaches that family's file alone, so editing
another family leaves its results fresh. Every family module has one name for others: FAMILY.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from llm_build.core.errors import UserError
from llm_build.core.fields import show_python

if TYPE_CHECKING:
    from llm_build.architectures.family import Family

FAMILIES: dict[str, str] = {  # model_type in config.json -> module
    "gpt_neox": "llm_build.architectures.gpt_neox",
    "llama": "llm_build.architectures.llama",
    "smollm3": "llm_build.architectures.smollm3",
    "qwen2": "llm_build.architectures.qwen2",
    "qwen3": "llm_build.architectures.qwen3",
    "olmo2": "llm_build.architectures.olmo2",
    "mistral": "llm_build.architectures.mistral",
    "mixtral": "llm_build.architectures.mixtral",
    "qwen3_moe": "llm_build.architectures.qwen3_moe",
    "phi3": "llm_build.architectures.phi3",
    "gemma2": "llm_build.architectures.gemma2",
    "gemma3_text": "llm_build.architectures.gemma3_text",
}


def load(name: str) -> Family:
    """The family of that name; UserError that lists the supported families if there is none."""
    if name not in FAMILIES:
        raise UserError(
            f"model family {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}",
            "CONTRIBUTING.md tells how to add a family",
        )
    return cast("Family", import_module(FAMILIES[name]).FAMILY)


def recognise(config_json: Mapping[str, Any]) -> str:
    """The family of a checkpoint, by the ``model_type`` of its config.json."""
    if "model_type" not in config_json:
        raise UserError(
            f"config.json has no model_type; supported: {', '.join(sorted(FAMILIES))}",
            "is this the config.json of a transformers checkpoint?",
        )
    family = config_json["model_type"]
    if not isinstance(family, str) or family not in FAMILIES:
        raise UserError(
            f"config.json: model_type {show_python(family)} is not supported; supported: {', '.join(sorted(FAMILIES))}",
            "CONTRIBUTING.md tells how to add a family",
        )
    return family
