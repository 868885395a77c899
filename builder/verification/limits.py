"""Which limits hold for a scheme. Standard library only: the planner asks."""

from __future__ import annotations

from collections.abc import Mapping

from builder.core.errors import UserError
from builder.core.step_io import Json

_NAMES = ("max_error", "rms_error", "kl", "top1", "perplexity")


def choose_limits(
    scheme: Mapping[str, Json],
    limits: Mapping[str, Mapping[str, float]],
    overrides: Mapping[str, float | None],
    exact: Mapping[str, float],
) -> dict[str, float]:
    """The limits of one build, flat.

    Args:
        scheme: "name", "kind", "bits".
        limits: by scheme name, or by "<kind>_<bits>", which serves every scheme of that kind with as many bits or more.
        overrides: verify.max_error and so on; None leaves the table's value.
        exact: "exact_max", "exact_rms".

    Raises:
        UserError: no entry serves the scheme.
    """
    entry = limits.get(scheme["name"])
    for bits in range(scheme["bits"], -1, -1):
        entry = entry if entry is not None else limits.get(f"{scheme['kind']}_{bits}")
    if entry is None:
        raise UserError(
            f"verify.limits has no entry for the scheme {scheme['name']!r}; it has {', '.join(sorted(limits))}",
            f"verify.limits.{scheme['name']}={{{', '.join(f'{name}: ...' for name in _NAMES)}}}, or verify=off",
        )
    chosen = {name: entry[name] for name in _NAMES}
    return chosen | {name: value for name, value in overrides.items() if value is not None} | dict(exact)


def is_trained(perplexity: float, vocab_size: int, ratio: float) -> bool:
    """Whether a model of this perplexity has learnt something: random weights give the vocabulary size, or more."""
    return vocab_size / perplexity >= ratio


def tighten(limits: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
    """The limits of a trained model; ``shares``: of verify.trained, by the name of the limit."""
    return {name: limit * shares.get(name, 1.0) for name, limit in limits.items()}
