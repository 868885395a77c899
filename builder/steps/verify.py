"""verify: the built artifact against both references, through every path of the runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np

from llm_build.core.digest import check_code
from llm_build.core.errors import StepError
from llm_build.core.json_text import indented
from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.runtime.engine import Engine
from llm_build.steps import tokenizer_check
from llm_build.steps.ports import group
from llm_build.verification import measure, paths
from llm_build.verification.limits import with_arithmetic, with_rounding
from llm_build.verification.results import Location, PathResult, VerifyResult, check_limits

Tick = Callable[[str, int], None]


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write verify.json with every figure; facts for the main ones.

    Args:
        params: "name", "scheme" (for messages), "limits" (verification.limits.stated_limits).
        inputs: "package" (the artifact's files), "reference", "dequantized" (tokens.npy, logits.npy, ...).
        out: progress in tokens.

    Raises:
        StepError: a figure is past its limit; the message names it, its limit and the way on.
    """
    reference, dequantized = group(inputs["reference"]), group(inputs["dequantized"])
    package = {name: file.path for name, file in group(inputs["package"]).items()}
    check_tokenizer(params["name"], group(inputs["package"]), reference)
    tokens = np.load(reference["tokens.npy"].path)
    assert np.array_equal(tokens, np.load(dequantized["tokens.npy"].path)), "both references saw the same tokens"
    original = np.load(reference["logits.npy"].path, mmap_mode="r")
    exact = np.load(dequantized["logits.npy"].path, mmap_mode="r")
    for name, file in group(inputs["package"]).items():
        if name.endswith(".so") and file.digest:  # the store names one for each
            check_code(file.path, file.digest)
    engine = Engine(package)
    if engine.vocab_size != original.shape[2]:
        raise StepError(f"the library has {engine.vocab_size} logits, the reference {original.shape[2]}", "verify=off")
    blocks = collect(engine, tokens, out)
    weights = json.loads(dequantized["reconstruction.json"].path.read_text())
    verified = compare(params, blocks, {"original": original, "dequantized": exact, "tokens": tokens}, weights)
    rounding = json.loads(dequantized["reference.json"].path.read_text())["rounding"]
    about = engine.metadata
    layers = about["kv_cache"]["num_hidden_layers"]
    limits = with_rounding(with_arithmetic(params["limits"], about.get("arithmetic", ""), layers), rounding)
    report_json = {**verified.json(), "limits": limits, "rounding": rounding}
    out.path("verify.json").write_bytes(indented(report_json))
    report(verified, out)
    check_limits(verified, limits)


def check_tokenizer(name: str, package: Mapping[str, File], reference: Mapping[str, File]) -> None:
    """Raises StepError where the artifact's tokenizer is not the checkpoint's, if the reference knows it."""
    if tokenizer_check.REFERENCE in reference:
        expected = json.loads(reference[tokenizer_check.REFERENCE].path.read_text())
        tokenizer_check.check(name, {file: each.path for file, each in package.items()}, expected)


def collect(engine: paths.Engine, tokens_NW: np.ndarray, out: Out) -> dict[str, list[paths.PathLogits]]:
    """Run every path.

    Raises:
        StepError: a logit is NaN or infinite.
    """
    done, total = 0, paths.total_tokens(engine, tokens_NW)

    def tick(path: str, tokens: int) -> None:
        nonlocal done
        done += tokens
        out.progress(done, total, "tokens", path)

    blocks: dict[str, list[paths.PathLogits]] = {}
    for block in paths.run_paths(engine, tokens_NW, tick):
        finite = np.isfinite(block.logits).all(axis=1)
        if not finite.all():
            raise StepError(
                f"{block.path}: the library gives NaN or infinity in window {block.window} "
                f"at position {block.positions[int(np.argmin(finite))]}; the reference is finite there",
                "the fault is in the lowered code, not in the weights: another path or position may still agree",
            )
        blocks.setdefault(block.path, []).append(block)
    return blocks


def compare(
    params: Mapping[str, Json],
    blocks: Mapping[str, list[paths.PathLogits]],
    arrays: Mapping[str, np.ndarray],
    weights: Mapping[str, Json],
) -> VerifyResult:
    """All figures; ``arrays``: original and dequantized logits [N, W, V], tokens [N, W]."""
    units = {name: measure.spread(_flat(arrays[name])) for name in ("original", "dequantized")}
    path_results = {path: _path(of, arrays, units) for path, of in blocks.items()}
    built = np.stack([block.logits for block in blocks[paths.ONE_SHOT]])
    perplexity = {
        name: measure.perplexity(measure.nll(logits, arrays["tokens"]))
        for name, logits in (("original", arrays["original"]), ("dequantized", arrays["dequantized"]), ("built", built))
    }
    nothing = measure.context_free(arrays["original"], arrays["tokens"])
    return VerifyResult(params["name"], params["scheme"], path_results, perplexity, weights, nothing)


def _path(blocks: list[paths.PathLogits], arrays: Mapping[str, np.ndarray], units: Mapping[str, float]) -> PathResult:
    locations: list[Location] = [(block.window, position) for block in blocks for position in block.positions]
    built_BV = np.concatenate([block.logits for block in blocks])
    windows, positions = (list(part) for part in zip(*locations, strict=True))
    original_BV, exact_BV = arrays["original"][windows, positions], arrays["dequantized"][windows, positions]
    first = [row for row, position in enumerate(positions) if position == 0]
    start = measure.errors(exact_BV[first], built_BV[first], units["dequantized"]).max_error if first else None
    return PathResult(
        locations,
        measure.errors(original_BV, built_BV, units["original"]),
        measure.divergence(original_BV, built_BV),
        measure.errors(exact_BV, built_BV, units["dequantized"]),
        start,
    )


def _flat(logits_NWV: np.ndarray) -> np.ndarray:
    return logits_NWV.reshape(-1, logits_NWV.shape[2])


def report(verified: VerifyResult, out: Out) -> None:
    """The main figures, for the table and build.json."""
    one_shot = verified.paths[paths.ONE_SHOT]
    facts = {
        "perplexity": verified.perplexity["built"],
        "perplexity_original": verified.perplexity["original"],
        "kl": one_shot.divergence.kl,
        "top1": one_shot.divergence.top1,
        "max_error": max(path.original.max_error for path in verified.paths.values()),
        "exact_error": max(path.exact.max_error for path in verified.paths.values()),
    }
    for name, value in facts.items():
        out.fact(name, float(f"{value:.4g}"))
