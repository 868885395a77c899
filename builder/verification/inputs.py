"""The reference rounds the inputs of its layers as the library does: with torch's own conversions, not with ours.

See quant/layout.py for what is rounded and how.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias

import torch

from llm_build.architectures.weights import Entry
from llm_build.core.errors import UserError
from llm_build.quant.layout import BYTE_LARGEST, Scheme, is_quantized

Tensor: TypeAlias = torch.Tensor

_FLOAT8 = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def round_inputs(model: Any, entries: Iterable[Entry], sources: Mapping[str, str], rule: Scheme) -> int:
    """Hook every layer of transformers whose parameter has a scheme with an activation; returns how many there are.

    Args:
        model: see source_model.load_named.
        entries: of the weight map.
        sources: {parameter of transformers: checkpoint tensor}; a name that is not there is its tensor's own.
        rule: the scheme.

    Raises:
        UserError: transformers has no layer of its own for such a parameter.
    """
    rounds, hooked = activations(entries, rule), set()
    for name, module in model.named_modules():
        tensor = sources.get(f"{name}.weight", f"{name}.weight")
        if isinstance(module, torch.nn.Linear) and tensor in rounds:
            module.register_forward_pre_hook(partial(_before, rounds[tensor]))
            hooked.add(tensor)
    embeddings = {s.tensor for entry in entries if entry.parameter.kind == "embedding" for s in entry.sources}
    missing = sorted(set(rounds) - hooked - embeddings)
    if missing:
        raise UserError(
            f"transformers has no layer of its own for {missing[0]}, whose input is rounded", "build verify=off"
        )
    return len(hooked)


def activations(entries: Iterable[Entry], rule: Scheme) -> dict[str, str]:
    """{checkpoint tensor: what the input of its layer is rounded to}. An embedding is here as it may be the head."""
    by_tensor = {}
    for entry in entries:
        activation = rule.for_parameter(entry.name).activation
        if activation and is_quantized(entry.parameter, rule):
            by_tensor.update({source.tensor: activation for source in entry.sources})
    return by_tensor


def _before(activation: str, _module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (rounded(arguments[0], activation), *arguments[1:])


def rounded(x: Tensor, activation: str) -> Tensor:
    """float32 (..., K) -> what its codes and the scale of each row stand for."""
    most = BYTE_LARGEST[activation]
    scale = x.abs().amax(dim=-1, keepdim=True) / most
    ratio = torch.where(scale == 0, 0.0, x / scale).clamp(-most, most)
    codes = ratio.round() if activation == "int8" else ratio.to(_FLOAT8[activation]).to(torch.float32)
    return codes * scale
