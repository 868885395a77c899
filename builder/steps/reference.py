"""verify.reference: what the original checkpoint says about the held-out text, by transformers in float32.

The model is the checkpoint's as its own config.json describes it; nothing of the recipe's overrides enters. The weights
come from the very slices that fetch declared, so what is verified is what was fetched; those of a quantized checkpoint
are what its integers stand for. Memory: see source_model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from llm_build.core.json_text import indented
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.steps import tokenizer_check
from llm_build.steps.ports import group, one
from llm_build.verification import heldout, quantized, source_model
from llm_build.verification.measure import nll, perplexity


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write tokens.npy (int32 [N, W]), logits.npy (float32 [N, W, V]) and reference.json.

    Args:
        params: "text" {"name", "digest"}, "tokens", "window", "logits_bytes" (see heldout.windows).
        inputs: "tensors" {"tensor/<name>": slice}, "layout" (layout.json), "config" (config.json) and, if the
            checkpoint has them, "tokenizer" (tokenizer.json), "source" (the tokenizer's files as they are) and
            "generation" (generation_config.json).
        out: its context holds "text", the path of the text.

    Raises:
        UserError: the text or the tokenizer do not serve; transformers cannot load the checkpoint.
        StepError: the reference itself is not finite.
    """
    if "source" in inputs:
        _write_tokenizer_reference(inputs, out)
    layout = json.loads(one(inputs["layout"]).path.read_text())["tensors"]
    tensors = group(inputs["tensors"])
    tokens, config = prepare(params, inputs, out)

    shapes, fetch = quantized.open_checkpoint(config, layout, tensors)
    model = source_model.load(config, shapes, fetch, out.progress)
    write(source_model.logits(model, tokens, out.threads), tokens, params, out)


def _write_tokenizer_reference(inputs: InputFiles, out: Out) -> None:
    source = {name.removeprefix("source/"): file for name, file in group(inputs["source"]).items()}
    generation = one(inputs["generation"]) if "generation" in inputs else None
    expected, warnings = tokenizer_check.reference(source, generation, one(inputs["config"]))
    for warning in warnings:
        out.warn(warning)
    out.path(tokenizer_check.REFERENCE).write_text(json.dumps(expected, indent=1) + "\n")


def prepare(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> tuple[np.ndarray, dict[str, Json]]:
    """The token windows and the checkpoint's config.json."""
    config = json.loads(one(inputs["config"]).path.read_text())
    tokenizer = one(inputs["tokenizer"]) if "tokenizer" in inputs else None
    if tokenizer is None:
        out.warn("the checkpoint has no tokenizer.json: verified on random tokens, so the perplexity says nothing")
    return heldout.windows(params, Path(out.context["text"]), tokenizer, config), config


def write(
    logits_NWV: np.ndarray,
    tokens_NW: np.ndarray,
    params: Mapping[str, Json],
    out: Out,
    rounding: Mapping[str, float] | None = None,
) -> None:
    """The outputs that both references share. ``rounding``: see source_model.rounding."""
    np.save(out.path("tokens.npy"), tokens_NW)
    np.save(out.path("logits.npy"), logits_NWV)
    value = perplexity(nll(logits_NWV, tokens_NW))
    count, window = tokens_NW.shape
    figures = {"perplexity": value, "text": params["text"]["name"], "windows": count, "window": window}
    figures |= {"rounding": dict(rounding)} if rounding is not None else {}
    out.path("reference.json").write_bytes(indented(dict(sorted(figures.items()))))
    out.fact("perplexity", round(value, 4))
    out.fact("tokens", count * window)
