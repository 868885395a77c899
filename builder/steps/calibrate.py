"""calibrate: the second moments of every linear layer's input over a calibration text, for quant.method=awq and gptq.

The model is transformers' in float32, as verify.reference runs it: one module's weights in memory at a time, all
windows in one batch, so that each weight is read once. What a layer sees comes from the original weights of the layers
before it. The paper goes on from quantized ones; here that would tie every shard to all shards before it and to the
scheme, while one calibration of the original serves every scheme, and a shard depends on the moments of its own
parameters alone. docs/how-it-works/quality.md has what the choice costs.

The logits are not computed: the head's input is the output of the model below it.

Moments of T tokens say little about more than T directions. So they are mixed with white noise of the same power, I
tokens of it for I inputs: H = (X^T X + I m 1) / T, m the mean of the diagonal of X^T X / T. What that does
for gptq with few tokens is in docs/how-it-works/quality.md; with many it is nothing.

Experts read different tokens, so each has moments of its own. One that read fewer than LEAST_TOKENS gets zeros, which
leave awq and gptq nothing to go by: they do what mse does. (transformers fuses the experts of a layer into one tensor,
so such a model is in memory whole, as for verify.reference.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_build.architectures.weights import Entry, read_map
from llm_build.core.errors import UserError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.quant.layout import layer_of, stem_of
from llm_build.steps.ports import group, one
from llm_build.verification import heldout, source_model

_KEY = "quant.calibration"
_THREADS = 1  # sums do not depend on how many cores there are
LEAST_TOKENS = 64  # with which gptq is still better than mse: docs/how-it-works/quality.md
Experts = dict[str, dict[str, str]]  # module of a layer's experts -> {its parameter: ours}


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write moments/<parameter>, float32 (in, in) as .npy: the H above, X (T, in) the parameter's input at T tokens.

    Of a stack of experts it is (experts, in, in), divided by the tokens of the text, not of the expert.

    Args:
        params: "text" {"name", "digest"}, "tokens", "window".
        inputs: those of verify.reference, and "weight_map".
        out: its context holds "text", the path of the text.

    Raises:
        UserError: the text or the tokenizer do not serve; transformers cannot load the checkpoint.
        UserError: a layer's input is not finite, or transformers has no layer for a parameter.
    """
    layout = json.loads(one(inputs["layout"]).path.read_text())["tensors"]
    tensors = group(inputs["tensors"])
    entries = read_map(json.loads(one(inputs["weight_map"]).path.read_text())).entries

    def fetch(name: str) -> source_model.Tensor:
        return source_model.read(tensors[f"tensor/{name}"], layout[name]["dtype"], layout[name]["shape"])

    tokens_NW = _windows(params, inputs, out)
    config = json.loads(one(inputs["config"]).path.read_text())
    shapes = {name: entry["shape"] for name, entry in layout.items()}
    model, sources = source_model.load_named(config, shapes, fetch, out.progress)
    mixed = experts(entries, [name for name, _ in model.named_parameters() if name not in sources])
    stacked = {name for module in mixed.values() for name in module.values()}
    plain = readers([entry for entry in entries if entry.name not in stacked], sources)
    _measure(model, plain, mixed, tokens_NW, out)
    out.fact("tokens", int(tokens_NW.size))


def _windows(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> np.ndarray:
    config = json.loads(one(inputs["config"]).path.read_text())
    tokenizer = one(inputs["tokenizer"]) if "tokenizer" in inputs else None
    if tokenizer is None:
        out.warn("the checkpoint has no tokenizer.json: calibrated on random tokens, which is worth little")
    unbounded = {**params, "logits_bytes": 4 * config["vocab_size"] * params["tokens"]}
    return heldout.windows(unbounded, Path(out.context["text"]), tokenizer, config, _KEY)


def readers(entries: Iterable[Entry], sources: Mapping[str, str]) -> dict[str, list[str]]:
    """{module: parameters that are made of its weight}. Of a fused parameter the first module speaks for all, as they
    share their input.

    Raises:
        UserError: transformers has no module for a parameter, because it fuses tensors itself, or the parameter is made
            of several blocks, which read different inputs.
    """
    modules = {tensor: name.rpartition(".")[0] for name, tensor in sources.items()}
    by_module: dict[str, list[str]] = {}
    for entry in entries:
        if entry.parameter.kind not in ("linear", "head"):
            continue
        parts = [modules.get(source.tensor, "") for source in entry.sources]
        if "" in parts or len({part.rpartition(".")[0] for part in parts}) > 1:
            raise UserError(
                f"calibrate: transformers has no layer of its own for {entry.name}, whose input could be measured",
                "build quant.method=mse, which needs no activations",
            )
        by_module.setdefault(parts[0], []).append(entry.name)
    return by_module


def experts(entries: Iterable[Entry], fused: Iterable[str]) -> Experts:
    """The modules of transformers that hold all experts of a layer. ``fused``: parameters that it made of several
    tensors; ours of the same layer that ends in the same name is the same stack."""
    ours = {(layer_of(e.name), stem_of(e.name).rpartition(".")[2]): e.name for e in entries}
    by_module: Experts = {}
    for name in fused:
        module, _, last = name.rpartition(".")
        if module.endswith(".experts") and (layer_of(name), last) in ours:
            by_module.setdefault(module, {})[last] = ours[layer_of(name), last]
    return {module: parts for module, parts in by_module.items() if set(parts) == {"gate_up_proj", "down_proj"}}


def _measure(model: Any, readers_of: Mapping[str, list[str]], mixed: Experts, tokens_NW: np.ndarray, out: Out) -> None:
    torch.set_num_threads(_THREADS)
    head = model.get_output_embeddings()
    too_few: list[int] = []  # experts of each layer with too few tokens

    def save(names: list[str], x: torch.Tensor) -> None:
        x_TI = x.reshape(-1, x.shape[-1])
        moment = _moment(x_TI, len(x_TI), names[0])
        for name in names:
            with out.path(f"moments/{name}").open("wb") as file:  # np.save would add .npy to a path
                np.save(file, moment)

    for module_name, module in model.named_modules():
        if module_name in readers_of and module is not head:
            module.register_forward_pre_hook(lambda _, x, names=readers_of[module_name]: save(names, x[0]))
        if module_name in mixed:
            module.register_forward_pre_hook(
                lambda module, x, names=mixed[module_name]: too_few.append(
                    _save_experts(module, x[0], x[1], names, out)
                )
            )
    with torch.inference_mode():
        last = model.base_model(torch.from_numpy(tokens_NW).long(), use_cache=False).last_hidden_state
        for module_name, module in model.named_modules():
            if module_name in readers_of and module is head:
                save(readers_of[module_name], last)
    if sum(too_few):
        count = sum(model.get_submodule(module_name).num_experts for module_name in mixed)
        out.warn(
            f"{sum(too_few)} of {count} experts read fewer than {LEAST_TOKENS} of the {tokens_NW.size} calibration "
            "tokens: their weights are chosen as by mse; quant.calibration.tokens gives them more"
        )


def _save_experts(module: Any, x_TH: torch.Tensor, chosen_TK: torch.Tensor, names: Mapping[str, str], out: Out) -> int:
    """The moments of a layer's experts, one after the other; returns how many of them read too few tokens."""
    too_few, files = 0, {}
    for part, name in names.items():
        weights = getattr(module, part)  # (experts, out, in)
        shape = (len(weights), weights.shape[2], weights.shape[2])
        files[part] = np.lib.format.open_memmap(out.path(f"moments/{name}"), "w+", np.float32, shape)
    for expert in range(module.num_experts):
        x_EH = x_TH[(chosen_TK == expert).any(dim=-1)]
        if len(x_EH) < LEAST_TOKENS:
            too_few += 1
            continue
        gate_EI, up_EI = torch.nn.functional.linear(x_EH, module.gate_up_proj[expert]).chunk(2, dim=-1)
        inputs = {"gate_up_proj": x_EH, "down_proj": module.act_fn(gate_EI) * up_EI}
        for part, name in names.items():
            files[part][expert] = _moment(inputs[part], len(x_TH), name)
    for file in files.values():
        file.flush()
    return too_few


def _moment(x_TI: torch.Tensor, tokens: int, name: str) -> np.ndarray:
    moment: np.ndarray = (x_TI.T @ x_TI / tokens).numpy()
    moment[np.diag_indices_from(moment)] += np.float32(
        moment.shape[0] / len(x_TI) * moment.diagonal().mean(dtype=float)
    )
    if not np.isfinite(moment).all():
        raise UserError(f"calibrate: the input of {name} holds NaN or infinity", "build quant.method=mse")
    return moment
