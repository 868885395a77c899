"""The model families: which exist, and where each one is described.

The table holds module names, not modules: a step that works on one family reaches that family's file alone, so editing
another family leaves its results fresh. Every family module exports the names listed in :class:`Family`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Protocol, cast

from builder.architectures.cuts import Cut
from builder.architectures.folds import Fold
from builder.architectures.weights import Parameter
from builder.core.errors import UserError

FAMILIES: dict[str, str] = {  # model_type in config.json -> module
    "gpt_neox": "builder.architectures.gpt_neox",
    "llama": "builder.architectures.llama",
    "qwen2": "builder.architectures.qwen2",
    "qwen3": "builder.architectures.qwen3",
    "olmo2": "builder.architectures.olmo2",
    "mistral": "builder.architectures.mistral",
    "mixtral": "builder.architectures.mixtral",
    "qwen3_moe": "builder.architectures.qwen3_moe",
    "phi3": "builder.architectures.phi3",
    "gemma2": "builder.architectures.gemma2",
    "gemma3_text": "builder.architectures.gemma3_text",
}


class Family(Protocol):
    """What a family module exports. ``Config`` is a frozen dataclass whose ``asdict`` is the recipe's architecture."""

    Config: type[Any]

    def from_hf(self, config_json: Mapping[str, Any]) -> Any:
        """Read the checkpoint's config.json, in old or new transformers spelling."""

    def from_architecture(self, architecture: Mapping[str, Any]) -> Any:
        """Read the canonical architecture dict; the inverse of ``dataclasses.asdict``."""

    def apply_overrides(self, config: Any, overrides: Mapping[str, Any]) -> Any:
        """Let the recipe's values win where the weights do not fix them."""

    def parameters(self, config: Any) -> tuple[Parameter, ...]:
        """The compiled model's parameters, in the order of the artifact."""

    def weight_map(self, config: Any, layout: Mapping[str, Any]) -> dict[str, Any]:
        """Each parameter as slices of the checkpoint's tensors, checked both ways."""

    def folds(self, config: Any) -> Iterator[Fold]:
        """Where input channels may be scaled, for quant.method=awq."""

    def cuts(self, config: Any) -> dict[str, Cut]:
        """What tensor parallelism cuts, by module."""

    def model_config(self, config: Any, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The ``model_config`` block of mlc-chat-config.json."""


def load(family: str) -> Family:
    """The family's module; UserError that lists the supported families if there is none."""
    if family not in FAMILIES:
        raise UserError(
            f"model family {family!r} is not supported; supported: {', '.join(sorted(FAMILIES))}",
            "CONTRIBUTING.md tells how to add a family",
        )
    return cast(Family, import_module(FAMILIES[family]))


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
            f"config.json: model_type {family!r} is not supported; supported: {', '.join(sorted(FAMILIES))}",
            "CONTRIBUTING.md tells how to add a family",
        )
    return family
