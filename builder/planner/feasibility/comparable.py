"""Whether verify compares a library with a model that computes the same, for as many tokens as it looks at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_build.config.schema import Metadata, Verify
from llm_build.core.errors import UserError


def check_comparable(architecture: Mapping[str, Any], metadata: Metadata, verify: Verify) -> None:
    """Raises UserError where verify would compare the library with a model that computes something else."""
    if verify.enabled:
        window = min(verify.window, metadata.context_window_size)
        _check_same_factors(architecture, metadata.context_window_size, window)
        _check_same_window(architecture, metadata, window)


def _check_same_factors(architecture: Mapping[str, Any], context: int, window: int) -> None:
    """LongRoPE: transformers takes the factors for the tokens that it sees, a library those for its whole context."""
    if "long_factor" not in (architecture.get("rope_scaling") or ()):
        return
    original = int(architecture["original_max_position_embeddings"])
    if window <= original < context:
        raise UserError(
            f"model.context_window_size: {context} takes this model's long RoPE factors, but transformers takes the "
            f"short ones for the {window} tokens that verify compares (verify.window); allowed: a context of up to "
            f"{original}, or a verify.window beyond it",
            f"build model.context_window_size={original}, or verify.window={original + 1}, or verify=off",
        )


def _check_same_window(architecture: Mapping[str, Any], metadata: Metadata, window: int) -> None:
    """A recipe may look through another window than the checkpoint: they agree for as long as both see everything."""
    context, configured = metadata.context_window_size, metadata.sliding_window_size
    own = min(architecture.get("sliding_window") or context, context)
    configured = configured if configured > 0 else context
    equal, sink = min(own, configured), metadata.attention_sink_size
    if (own != configured or sink) and window > equal:
        raise UserError(
            f"model.sliding_window_size is {configured} with model.attention_sink_size {sink}, the checkpoint's window "
            f"is {own}: beyond {equal} tokens they differ, and verify compares {window}",
            f"build verify.window={equal}, or verify=off",
        )
