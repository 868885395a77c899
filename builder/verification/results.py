"""What verify measured, and what of it is past a limit, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf

from llm_build.core.errors import StepError
from llm_build.core.step_io import Json
from llm_build.core.units import count_of
from llm_build.verification.measure import Divergence, Errors
from llm_build.verification.paths import CHUNKED, DECODE, INTERLEAVED, ONE_SHOT, PREFILL

Location = tuple[int, int]  # (window, position)
_MIN_POSITIONS = 64  # for a mean to be checked; the exact limits serve shorter paths


@dataclass(frozen=True, slots=True)
class PathResult:
    """One path: against the original checkpoint and against the artifact's own weights, dequantized.

    ``locations`` says where row i of the compared logits was; ``start`` is the exact error at position 0 alone.
    """

    locations: Sequence[Location]
    original: Errors
    divergence: Divergence
    exact: Errors
    start: float | None

    def json(self) -> Json:
        original = {**asdict(self.original), **asdict(self.divergence)}
        exact = asdict(self.exact)
        for table, worst in ((original, self.original.worst), (exact, self.exact.worst)):
            table["worst"] = dict(zip(("window", "position"), self.locations[worst], strict=True))
        return {"positions": len(self.locations), "original": original, "exact": exact}


@dataclass(frozen=True, slots=True)
class VerifyResult:
    """All that verify knows about one artifact."""

    name: str
    scheme: str
    paths: Mapping[str, PathResult]
    perplexity: Mapping[str, float]  # original, dequantized, built
    weights: Mapping[str, Json]  # reconstruction.json
    context_free: Mapping[str, float]  # "kl" and "perplexity", see measure.context_free

    @property
    def ratio(self) -> float:
        return self.perplexity["built"] / self.perplexity["original"]

    def json(self) -> Json:
        return {
            "name": self.name,
            "scheme": self.scheme,
            "paths": {path: result.json() for path, result in self.paths.items()},
            "perplexity": {**self.perplexity, "ratio": self.ratio},
            "context_free": dict(self.context_free),
            "weights": dict(self.weights),
        }


def check_limits(verified: VerifyResult, limits: Mapping[str, float]) -> None:
    """StepError for what is past its limit: wrong weights first, then wrong arithmetic, then what the scheme costs."""
    _check_weights(verified)
    _check_exact(verified, limits)
    _check_sensible(verified)
    _check_cost(verified, limits)


def _check_weights(verified: VerifyResult) -> None:
    wrong = verified.weights["wrong"]
    if not wrong:
        return
    first = wrong[0]
    raise StepError(
        f"{verified.name}: not their source rounded to nearest: {count_of(len(wrong), 'parameter')}. "
        f"{first['parameter']}, "
        f"row {first['row']}: a weight is {float(first['steps']):.3g} steps off (0.5 at most) and a scale "
        f"{float(first['scale_ulps']):.3g} units of its last place off (0.5 at most)",
        "the quantize or convert step is wrong, or a shard was changed: `build doctor --store` checks the store",
    )


def _check_exact(verified: VerifyResult, limits: Mapping[str, float]) -> None:
    past = _exact_failures(verified.paths, limits)
    if not past:
        return
    path = ONE_SHOT if ONE_SHOT in past else max(past, key=lambda name: verified.paths[name].exact.max_error)
    result = verified.paths[path]
    window, position = result.locations[result.exact.worst]
    every = ", ".join(f"{name} {each.exact.max_error:.2g}" for name, each in verified.paths.items())
    raise StepError(
        f"{verified.name} does not compute what transformers computes from the same dequantized weights: {path}: "
        f"max error {result.exact.max_error:.3g} of the logits' spread (verify.exact_max {limits['exact_max']:.3g}), "
        f"rms error {result.exact.rms_error:.3g} (verify.exact_rms {limits['exact_rms']:.3g}), "
        f"largest in window {window} at position {position}. Max error by path: {every}",
        _equal_experts(verified.weights) or _diagnose(verified.paths, limits),
    )


def _equal_experts(weights: Mapping[str, Json]) -> str:
    """ "" unless a router cannot tell two experts apart."""
    for router, (one, other) in weights.get("equal_experts", {}).items():
        return (
            f"{router} scores experts {one} and {other} the same, and nothing says which of them a token goes to: "
            "library and transformers may each take another. verify=off takes it as it is"
        )
    return ""


def _exact_failures(paths: Mapping[str, PathResult], limits: Mapping[str, float]) -> set[str]:
    """The paths that do not agree with the dequantized reference."""
    return {
        path
        for path, result in paths.items()
        if result.exact.max_error > limits["exact_max"] or result.exact.rms_error > limits["exact_rms"]
    }


def _diagnose(paths: Mapping[str, PathResult], limits: Mapping[str, float]) -> str:
    """What is likely wrong, from which paths agree with the dequantized reference and which do not."""
    bad, start = _exact_failures(paths, limits), paths[ONE_SHOT].start
    if ONE_SHOT in bad:
        if start is not None and start <= limits["exact_max"]:
            return (
                "position 0 agrees, so embedding, norms, MLP and head are right: look at attention and RoPE "
                "(is model.rope_theta set against config.json? are heads in another order?)"
            )
        return (
            "the compiled graph is another model than config.json describes: is model.rms_norm_eps or another "
            "architecture key set against it? else the fault is in the family's graph or in a schedule"
        )
    if bad <= {DECODE, INTERLEAVED}:
        return "prefill agrees and decode does not: look at the decode kernels and at how a token enters the cache"
    if bad <= {CHUNKED, INTERLEAVED}:
        return "a window at once agrees: look at reading the cache back, page ends and positions of later pieces"
    assert bad <= {PREFILL, CHUNKED, DECODE, INTERLEAVED}, bad
    return "all positions at once agree: look at prefill's last position and at the cache"


def _check_sensible(verified: VerifyResult) -> None:
    """Nothing sensible is left if the original makes use of the context (it is twice as good on the text as a model
    that ignores it) and the built model is worse than that model, on the text and in what the original says."""
    nothing, perplexity = verified.context_free, verified.perplexity
    kl = verified.paths[ONE_SHOT].divergence.kl
    useful = 2 * perplexity["original"] <= nothing["perplexity"]
    if useful and kl > nothing["kl"] and perplexity["built"] > nothing["perplexity"]:
        raise StepError(
            f"{verified.name}: nothing sensible is left of the model: KL {kl:.3g} from the original, perplexity "
            f"{perplexity['built']:.4g} (original {perplexity['original']:.4g}). A model that ignores the context has "
            f"KL {nothing['kl']:.3g}, perplexity {nothing['perplexity']:.4g}",
            f"{verified.scheme} loses too much of this model: take more bits, or quant.method=gptq; or verify=off",
        )


def _check_cost(verified: VerifyResult, limits: Mapping[str, float]) -> None:
    """Limits that the recipe states."""
    past = [entry for path, result in verified.paths.items() for entry in _past(path, result, limits)]
    if verified.ratio > limits.get("perplexity", inf):
        past.append((verified.ratio / limits["perplexity"], "perplexity", verified.ratio, ONE_SHOT))
    if not past:
        return
    _, key, value, where = max(past)
    names = dict.fromkeys(entry[1] for entry in sorted(past, reverse=True))
    allowed = f"{value * 1.1:.2g}" if key != "top1" else f"{value * 0.95:.2g}"
    raise StepError(
        f"{verified.name} is too far from the original checkpoint: {key} {value:.4g}, limit {limits[key]:.4g} "
        f"({where}); past their limits: {', '.join(names)}. Perplexity {verified.perplexity['built']:.4g}, original "
        f"{verified.perplexity['original']:.4g}; the library does agree with its own weights",
        f"{verified.scheme} costs this model that much: take a finer quant or quant.method=gptq, or allow it with "
        f"verify.{key}={allowed}, or build with verify=off",
    )


def _past(path: str, result: PathResult, limits: Mapping[str, float]) -> list[tuple[float, str, float, str]]:
    """(how far past its limit, name, value, where) of one path's figures; means are checked over enough positions."""
    worst, least = result.locations[result.original.worst], result.locations[result.divergence.worst]
    figures = [("max_error", result.original.max_error, worst)]
    if len(result.locations) >= _MIN_POSITIONS:
        figures += [("rms_error", result.original.rms_error, worst), ("kl", result.divergence.kl, least)]
    past = [
        (value / limits[key], key, value, f"{path}, worst in window {window} at position {position}")
        for key, value, (window, position) in figures
        if value > limits.get(key, inf)
    ]
    if len(result.locations) >= _MIN_POSITIONS and result.divergence.top1_close < limits.get("top1", 0.0):
        share = result.divergence.top1_close
        past.append(((1 - share) / max(1 - limits["top1"], 1e-6), "top1", share, path))
    return past
