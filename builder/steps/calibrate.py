"""calibrate: the second moments of every linear layer's input over a calibration text, for quant.method=gptq.

The model is transformers' in float32, as verify.reference runs it: one module's weights in memory at a time, all
windows in one batch, so that each weight is read once. What a layer sees comes from the original weights of the layers
before it. The paper goes on from quantized ones; here that would tie every shard to all shards before it and to the
scheme, while one calibration of the original serves every scheme, and a shard depends on the moments of its own
parameters alone. docs/quality.md has what the choice costs.

The logits are not computed: the head's input is the output of the model below it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from builder.core.errors import StepError
from builder.core.step import InputFiles, Json, Out
from builder.steps.ports import group, one
from builder.verification import heldout, source_model

KEY = "quant.calibration"
THREADS = 1  # sums do not depend on how many cores there are


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write moments/<parameter>, float32 (in, in) as .npy: X^T X / T, X (T, in) the parameter's input at T tokens.

    Args:
        params: "text" {"name", "digest"}, "tokens", "window".
        inputs: those of verify.reference, and "weight_map".
        out: its context holds "text", the path of the text.

    Raises:
        UserError: the text or the tokenizer do not serve; transformers cannot load the checkpoint.
        StepError: a layer's input is not finite, or transformers has no layer for a parameter.
    """
    layout = json.loads(one(inputs["layout"]).path.read_text())["tensors"]
    tensors = group(inputs["tensors"])
    entries = json.loads(one(inputs["weight_map"]).path.read_text())["parameters"]

    def fetch(name: str) -> source_model.Tensor:
        return source_model.read(tensors[f"tensor/{name}"], layout[name]["dtype"], layout[name]["shape"])

    tokens_NW = _windows(params, inputs, out)
    config = json.loads(one(inputs["config"]).path.read_text())
    shapes = {name: entry["shape"] for name, entry in layout.items()}
    model, sources = source_model.load_named(config, shapes, fetch, out.progress)
    _measure(model, readers(entries, sources), tokens_NW, out)
    out.fact("tokens", int(tokens_NW.size))


def _windows(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> np.ndarray:
    config = json.loads(one(inputs["config"]).path.read_text())
    tokenizer = one(inputs["tokenizer"]) if "tokenizer" in inputs else None
    if tokenizer is None:
        out.warn("the checkpoint has no tokenizer.json: calibrated on random tokens, which is worth little")
    unbounded = {**params, "logits_bytes": 4 * config["vocab_size"] * params["tokens"]}
    return heldout.windows(unbounded, Path(out.context["text"]), tokenizer, config, KEY)


def readers(entries: Iterable[Mapping[str, Json]], sources: Mapping[str, str]) -> dict[str, list[str]]:
    """{module: parameters that are made of its weight}. Of a fused parameter the first module speaks for all, as they
    share their input.

    Raises:
        StepError: transformers has no module for a parameter, because it fuses tensors itself, or the parameter is made
            of several blocks (experts), which read different inputs.
    """
    modules = {tensor: name.rpartition(".")[0] for name, tensor in sources.items()}
    found: dict[str, list[str]] = {}
    for entry in entries:
        if entry["kind"] not in ("linear", "head"):
            continue
        parts = [modules.get(source["tensor"], "") for source in entry["sources"]]
        if "" in parts or len({part.rpartition(".")[0] for part in parts}) > 1:
            raise StepError(
                f"calibrate: transformers has no layer of its own for {entry['name']}, whose input could be measured",
                "build quant.method=mse, which needs no activations",
            )
        found.setdefault(parts[0], []).append(entry["name"])
    return found


def _measure(model: Any, wanted: Mapping[str, list[str]], tokens_NW: np.ndarray, out: Out) -> None:
    torch.set_num_threads(THREADS)
    head = model.get_output_embeddings()

    def save(names: list[str], x: torch.Tensor) -> None:
        x_TI = x.reshape(-1, x.shape[-1])
        moment = (x_TI.T @ x_TI / len(x_TI)).numpy()
        if not np.isfinite(moment).all():
            raise StepError(f"calibrate: the input of {names[0]} holds NaN or infinity", "build quant.method=mse")
        for name in names:
            with out.path(f"moments/{name}").open("wb") as file:  # np.save would add .npy to a path
                np.save(file, moment)

    for module_name, module in model.named_modules():
        if module_name in wanted and module is not head:
            module.register_forward_pre_hook(lambda _, x, names=wanted[module_name]: save(names, x[0]))
    with torch.inference_mode():
        last = model.base_model(torch.from_numpy(tokens_NW).long(), use_cache=False).last_hidden_state
        for module_name, module in model.named_modules():
            if module_name in wanted and module is head:
                save(wanted[module_name], last)
