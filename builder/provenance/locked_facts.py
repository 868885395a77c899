"""The recipe and what was measured, flat, as a lock has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from llm_build.core.step_io import Json
from llm_build.provenance.lock_file import Fact, Facts

_SECTIONS = ("architecture", "metadata", "model", "package", "quant", "target", "verify")  # of the recipe
_ELSEWHERE = (  # said by another section of the lock, or of no consequence for this cell
    "model.source", "model.architecture", "package.kind", "quant.calibration.text",
    "verify.exact_rounded",
)  # fmt: skip
QUALITY = ("kl", "perplexity", "perplexity_original", "top1")  # of verify and verify.weights


def settings_of(recipe: Mapping[str, Json], undecided: bool = False) -> Facts:
    """The recipe as build.json has it, flat; without what is null or empty and rules that are still to be picked."""
    settings = flat({section: recipe.get(section, {}) for section in _SECTIONS})
    dropped = (*_ELSEWHERE, *(("quant.rules",) if undecided else ()))
    return {key: value for key, value in settings.items() if not key.startswith(dropped)}


def flat(value: Json, path: str = "") -> dict[str, Fact]:
    """{"a.b": value}. A list of plain values is one fact, its items joined by commas."""
    if isinstance(value, dict):
        below = [flat(each, f"{path}.{key}" if path else str(key)) for key, each in sorted(value.items())]
        return {key: fact for facts in below for key, fact in facts.items()}
    if isinstance(value, (list, tuple)):
        if any(isinstance(each, (dict, list, tuple)) for each in value):
            return flat({str(number): each for number, each in enumerate(value)}, path)
        value = ", ".join(str(each) for each in value)
    return {} if value is None or value == "" else {path: value}


def quality_of(facts: Iterable[Mapping[str, Json]]) -> Facts:
    """What verify measured, to four digits: the last ones differ from CPU to CPU."""
    measured = {key: value for each in facts for key, value in each.items() if key in QUALITY}
    return {key: float(f"{value:.4g}") for key, value in sorted(measured.items())}
