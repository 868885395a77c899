"""The graph of a model, built from the parts that its family names (builder/architectures/parts).

Parts are found by name, as families are: a library's code is the parts of its own model, so editing another family's
leaves it fresh.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(operation: str) -> Any:
    """What "module:name" names."""
    module, _, name = operation.partition(":")
    return getattr(import_module(module), name)
