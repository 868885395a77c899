"""Scaled weights: the columns of a matrix times s, the rows of what makes its input over s (architectures/folds.py).

A parameter's columns are float32 (blocks, in): as many blocks as its rows have, each with factors of its own. Its rows
are float32 (2, out): a factor and an addend, as 1 + w becomes (1 + w) / s = 1 + (w / s + 1 / s - 1). All is float32,
elementwise and in this order: columns, then rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llm_build.core.step_io import File, InputFiles


@dataclass(frozen=True, slots=True)
class Scaling:
    """What is done to one parameter of ``outputs`` rows; None: nothing."""

    outputs: int
    columns_BI: np.ndarray | None
    rows_2O: np.ndarray | None

    def apply(self, weights_RI: np.ndarray, first: int) -> None:
        """Scale rows ``first`` and following, float32, in place; a vector is given as (R, 1)."""
        some = slice(first, first + len(weights_RI))
        if self.columns_BI is not None:
            each = self.outputs // len(self.columns_BI)
            weights_RI *= self.columns_BI[np.arange(some.start, some.stop) // each]
        if self.rows_2O is not None:
            weights_RI *= self.rows_2O[0, some, None]
            weights_RI += self.rows_2O[1, some, None]


def read(name: str, outputs: int, files: Mapping[str, File] | InputFiles) -> Scaling | None:
    """The scaling of a parameter among {"columns/<parameter>", "rows/<parameter>": File}, or None."""
    arrays = {}
    for part in ("columns", "rows"):
        if f"{part}/{name}" in files:
            file = files[f"{part}/{name}"]
            assert isinstance(file, File)
            arrays[part] = np.load(file.path)
    return Scaling(outputs, arrays.get("columns"), arrays.get("rows")) if arrays else None
