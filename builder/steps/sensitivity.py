"""sensitivity: what the whole model loses when one of its parameters is rounded, for quant.budget.

The model is transformers' in float32, as verify.reference runs it, on a few windows of the calibration text, many times
in one batch: the first block of the batch is the model as it is, and in every other block one parameter is rounded by
the coarsest of the candidates. So a pass over the weights, one module in memory at a time, measures several parameters:

    loss(p, coarsest) = mean over positions of KL(original || p rounded),

which makes layers comparable, whatever lies behind them. KL is quadratic in a small error, so the other candidates are
scaled by the squared error that they leave in the output of the parameter's own layer, over the same tokens:

    loss(p, c) = loss(p, coarsest) * |x dW_c^T|^2 / |x dW_coarsest^T|^2.

How close that is to measuring each is in docs/how-it-works/quality.md. A matrix that is both embedding and head is
rounded in both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_build.architectures.weights import Entry, read_map
from llm_build.core.digest import canonical
from llm_build.core.errors import UserError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.quant.layout import Scheme, parse_scheme
from llm_build.quant.rounding import rounded
from llm_build.steps.ports import group, one
from llm_build.verification import heldout, source_model

_KEY = "quant.calibration"
_BATCH_TOKENS = 8192
_LOGITS_BYTES = 1 << 30  # of a batch
ROWS = 64  # positions whose predictions are compared at a time, in float64
_DIGITS = 5  # that are kept: enough to rank, and too few for the order of a sum to show
Rows = list[tuple[int, int]]
Owned = dict[str, dict[str, Rows]]  # module -> {parameter of ours: rows of the module's weight that belong to it}


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write sensitivity.json: {"losses": {parameter: {scheme: KL in nats}}, "tokens"}.

    Args:
        params: "schemes" {name: scheme}, "text" {"name", "digest"}, "tokens", "window".
        inputs: those of verify.reference, and "weight_map".
        out: its context holds "text", the path of the text.

    Raises:
        UserError: the text or the tokenizer do not serve; transformers cannot load the checkpoint.
        UserError: transformers has no layer for a parameter, or the model is not finite.
    """
    layout = json.loads(one(inputs["layout"]).path.read_text())["tensors"]
    tensors = group(inputs["tensors"])
    config = json.loads(one(inputs["config"]).path.read_text())
    entries = read_map(json.loads(one(inputs["weight_map"]).path.read_text())).entries
    tokens_NW = _windows(params, inputs, config, out)
    schemes = {name: parse_scheme(table) for name, table in params["schemes"].items()}

    def fetch(name: str) -> source_model.Tensor:
        return source_model.read(tensors[f"tensor/{name}"], layout[name]["dtype"], layout[name]["shape"])

    progress = Progress(out)
    shapes = {name: entry["shape"] for name, entry in layout.items()}
    model, sources = source_model.load_named(config, shapes, fetch, progress.tick)
    torch.set_num_threads(max(1, out.threads))
    owned = _owners(entries, sources)
    names = list(dict.fromkeys(name for parts in owned.values() for name in parts))
    at_once = min(_BATCH_TOKENS // tokens_NW.size, _LOGITS_BYTES // (4 * config["vocab_size"] * tokens_NW.size))
    chunks = [names[start : start + max(1, at_once - 1)] for start in range(0, len(names), max(1, at_once - 1))]
    progress.passes = len(chunks)
    losses: dict[str, dict[str, float]] = {}
    for chunk in chunks:
        losses |= Probe(model, owned, schemes, chunk, torch.from_numpy(tokens_NW).long()).losses()
        progress.done += 1
    out.path("sensitivity.json").write_bytes(canonical({"losses": losses, "tokens": int(tokens_NW.size)}))
    out.fact("tokens", int(tokens_NW.size))
    out.fact("parameters", len(names))


def _windows(params: Mapping[str, Json], inputs: InputFiles, config: Mapping[str, Json], out: Out) -> np.ndarray:
    tokenizer = one(inputs["tokenizer"]) if "tokenizer" in inputs else None
    if tokenizer is None:
        out.warn("the checkpoint has no tokenizer.json: measured on random tokens, which is worth little")
    unbounded = {**params, "logits_bytes": 4 * config["vocab_size"] * params["tokens"]}
    return heldout.windows(unbounded, Path(out.context["text"]), tokenizer, config, _KEY)


class Progress:
    """Modules of all passes over the model."""

    def __init__(self, out: Out) -> None:
        self.out, self.passes, self.done = out, 1, 0

    def tick(self, done: int, total: int) -> None:
        self.out.progress(self.done * total + done, self.passes * total, "modules")


def _owners(entries: Iterable[Entry], sources: Mapping[str, str]) -> Owned:
    """Which modules a parameter is in. ``sources``: {parameter as transformers names it: checkpoint tensor}.

    Raises:
        UserError: transformers has no module for a tensor, or the tensor is not stored as the module holds it.
    """
    modules: dict[str, list[str]] = {}
    for name, tensor in sources.items():
        modules.setdefault(tensor, []).append(name.rpartition(".")[0])
    owned: Owned = {}
    for entry in entries:
        if entry.parameter.kind not in ("linear", "head", "embedding"):
            continue
        for source in entry.sources:
            if source.tensor not in modules or entry.op not in ("copy", "stack"):
                raise UserError(
                    f"sensitivity: transformers has no layer of its own for {entry.name}, whose effect could be "
                    "measured",
                    "rules of your own: build quant=mixed_q4_q8",
                )
            for module in modules[source.tensor]:
                owned.setdefault(module, {}).setdefault(entry.name, []).append((source.start, source.stop))
    return owned


class Probe:
    """One pass over the model with a batch of blocks of N windows: as it is, and with each of ``chunk`` rounded."""

    def __init__(
        self, model: Any, owned: Owned, schemes: Mapping[str, Scheme], chunk: Sequence[str], tokens_NW: torch.Tensor
    ) -> None:
        self.model, self.owned, self.schemes, self.chunk, self.tokens_NW = model, owned, schemes, chunk, tokens_NW
        self.coarsest = min(schemes, key=lambda name: schemes[name].bits)
        self.errors = {parameter: dict.fromkeys(schemes, 0.0) for parameter in chunk}

    def losses(self) -> dict[str, dict[str, float]]:
        """{parameter: {scheme: loss}} of the chunk."""
        hooks = [
            # before the hook that takes the weights away
            module.register_forward_hook(self.replacing(self.owned[name]), prepend=True)
            for name, module in self.model.named_modules()
            if name in self.owned
        ]
        batch_BW = self.tokens_NW.repeat(1 + len(self.chunk), 1)
        with torch.inference_mode():
            logits_BWV = self.model(batch_BW, use_cache=False).logits
        for hook in hooks:
            hook.remove()
        original, *others = logits_BWV.split(len(self.tokens_NW))
        return {name: self.scaled(name, divergence(original, it)) for name, it in zip(self.chunk, others, strict=True)}

    def replacing(self, parts: Mapping[str, Rows]) -> Any:
        """A hook that computes a module's output again for the blocks in which its weight is another one."""

        def hook(module: Any, arguments: tuple[torch.Tensor, ...], y: torch.Tensor) -> None:
            count, weight = len(self.tokens_NW), module._parameters["weight"]
            for block, parameter in enumerate(self.chunk, 1):
                if parameter not in parts:
                    continue
                some = slice(block * count, (block + 1) * count)
                for name, candidate in self.schemes.items():
                    module._parameters["weight"] = _with_rounded_rows(weight, parts[parameter], candidate)
                    rounded_y = module.forward(arguments[0][:count])
                    self.errors[parameter][name] += float((rounded_y - y[:count]).square().sum(dtype=torch.float64))
                    if name == self.coarsest:
                        y[some] = module.forward(arguments[0][some])
            module._parameters["weight"] = weight

        return hook

    def scaled(self, parameter: str, kl: float) -> dict[str, float]:
        if not np.isfinite(kl):
            raise UserError(f"sensitivity: with {parameter} rounded the logits are not finite", "quant.budget=null")
        errors = self.errors[parameter]
        unit = errors[self.coarsest] or 1.0
        return {name: float(f"{max(kl, 0.0) * error / unit:.{_DIGITS}g}") for name, error in errors.items()}


def _with_rounded_rows(weight: torch.Tensor, rows: Rows, candidate: Scheme) -> torch.Tensor:
    """The weight with some of its rows rounded."""
    result = weight.clone()
    for start, stop in rows:
        result[start:stop] = torch.from_numpy(rounded(weight[start:stop].numpy(), candidate))
    return result


def divergence(original_NWV: torch.Tensor, other_NWV: torch.Tensor) -> float:
    """Mean over positions of KL(original || other), nats, in float64."""
    total, positions = 0.0, int(original_NWV.shape[0] * original_NWV.shape[1])
    for p, q in zip(original_NWV.flatten(0, 1).split(ROWS), other_NWV.flatten(0, 1).split(ROWS), strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return total / positions
