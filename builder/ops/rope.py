"""Rotary frequencies, in radians per token, one per pair of features; all arithmetic in float32, as in transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from llm_build.ops.kv_cache import rope_frequencies


def frequencies(
    theta: float, rotary_dim: int, scaling: Mapping[str, Any] | None, context_tokens: int = 0
) -> tuple[float, ...]:
    """theta^(-2i / rotary_dim), stretched as ``scaling`` says (builder/architectures/rope.py gives its fields) for the
    context that a library is built for."""
    plain = rope_frequencies(theta, rotary_dim)
    return plain if scaling is None else SCALED[scaling["rope_type"]](plain, scaling, context_tokens)


def linear(plain: tuple[float, ...], scaling: Mapping[str, Any], _: int) -> tuple[float, ...]:
    """Position interpolation: every angle divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595)."""
    import numpy as np

    return tuple(float(value) for value in np.asarray(plain, np.float32) / np.float32(scaling["factor"]))


def llama3(plain: tuple[float, ...], scaling: Mapping[str, Any], _: int) -> tuple[float, ...]:
    """Llama 3.1: wavelengths beyond original / low_freq_factor are stretched by ``factor``, those below original /
    high_freq_factor are kept, and between them the two are mixed (Meta's llama-models, ``apply_scaling`` in
    models/llama3/model.py; the Llama 3 herd of models, arXiv:2407.21783).
    """
    import numpy as np

    frequency = np.asarray(plain, np.float32)
    original, factor = scaling["original_max_position_embeddings"], np.float32(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = np.float32(2 * math.pi) / frequency
    kept = (np.float32(original) / wavelength - np.float32(low)) / np.float32(high - low)
    mixed = (1 - kept) * frequency / factor + kept * frequency
    stretched = np.where(wavelength > original / low, frequency / factor, mixed)
    return tuple(float(value) for value in np.where(wavelength < original / high, frequency, stretched))


def longrope(plain: tuple[float, ...], scaling: Mapping[str, Any], context_tokens: int) -> tuple[float, ...]:
    """Every pair's frequency over its factor: the long ones for a context beyond the one the model began with (Ding et
    al. 2024, arXiv:2402.13753)."""
    long = context_tokens > scaling["original_max_position_embeddings"]
    factors = scaling["long_factor" if long else "short_factor"]
    return tuple(frequency / factor for frequency, factor in zip(plain, factors, strict=True))


SCALED = {"linear": linear, "llama3": llama3, "longrope": longrope}
