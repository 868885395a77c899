"""Ways to choose the stored integers of a group scheme. The packed format, and so every runtime, is the same for all.

- ``rtn``: scale = max |w| / M, weights rounded to nearest; what ``pack`` does by itself.
- ``mse``: the scale of each group that gives the least squared error of its weights; the default.
- ``awq``: mse over weights whose input channels are scaled, by what the inputs are over a calibration text; undone in
  what makes the inputs.
- ``gptq``: as mse, and what rounding loses in one input is made up for in the inputs after it, by the inputs' second
  moments over a calibration text.

A method is given the weights of a block and the scales of rtn. It returns the scales to store, and may move the weights
(in place) that are then divided by them and rounded. Unlike rtn, methods use all 2^bits stored values: with M =
2^(bits-1) - 1 the format reads the last one as M + 1 steps, and a negative scale turns that end to the negative side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, TypeAlias

from llm_build.quant.layout import Scheme

if TYPE_CHECKING:
    import numpy as np

METHODS: Mapping[str, str] = {  # name -> module with ``prepare``; rtn has none
    "mse": "llm_build.quant.methods.mse",
    "awq": "llm_build.quant.methods.awq",
    "gptq": "llm_build.quant.methods.gptq",
}
CALIBRATED = ("awq", "gptq")  # those that need a calibration text

# weights (G, S) and scales of rtn (G,), float32 -> scales to store (G,), float32: mse's search as machine code
Search: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray]"
# weights (R, padded width), scales (R * G,) -> scales (R * G,)
Method: TypeAlias = "Callable[[np.ndarray, np.ndarray], np.ndarray]"


def prepare(
    name: str, scheme: Scheme, moment: np.ndarray | None, damping: float, search: Search | None = None
) -> Method:
    """The method for one parameter.

    Args:
        name: a key of METHODS.
        scheme: with its group_size decided.
        moment: float32 (in, in), the second moments of the parameter's input, or None where there are none.
        damping: see gptq.
        search: for mse and awq; without it numpy searches, with the same result.
    """
    more = {"search": search} if search else {}
    method: Method = import_module(METHODS[name]).prepare(scheme, moment, damping, **more)
    return method
