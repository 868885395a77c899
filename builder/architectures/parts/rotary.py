"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rotary:
    """The first ``dim`` features of a head are rotated; ``theta`` is the base of the angles, ``scaling`` stretches them
    (builder/architectures/rope.py gives its fields), ``magnitude`` multiplies sine and cosine."""

    dim: int
    theta: float
    scaling: Mapping[str, Any] | None = None
    magnitude: float = 1.0
