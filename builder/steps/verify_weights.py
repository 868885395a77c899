"""verify.weights: the packed weights and the tokenizer of an artifact that this machine cannot run, against the
original checkpoint.

The checkpoint, with the weights that were stored, goes through transformers: what the scheme costs is measured as in
verify, and judged by the same limits. The library is not run, and nothing here says that it works.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from llm_build.core.json_text import indented
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.steps.ports import group
from llm_build.steps.verify import check_tokenizer, compare, report
from llm_build.verification import paths
from llm_build.verification.limits import with_rounding
from llm_build.verification.results import check_limits


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write verify.json with "ran": false.

    Args:
        params: as verify's, and "kind" of the target.
        inputs: "package", "reference", "dequantized" (tokens.npy, logits.npy, ...).

    Raises:
        StepError: the tokenizer gives other tokens, or a figure is past its limit.
    """
    reference, dequantized = group(inputs["reference"]), group(inputs["dequantized"])
    check_tokenizer(params["name"], group(inputs["package"]), reference)
    original = np.load(reference["logits.npy"].path, mmap_mode="r")
    stored = np.load(dequantized["logits.npy"].path, mmap_mode="r")
    weights = json.loads(dequantized["reconstruction.json"].path.read_text())
    positions = list(range(stored.shape[1]))
    blocks = [paths.PathLogits(paths.ONE_SHOT, window, positions, logits) for window, logits in enumerate(stored)]
    arrays = {"original": original, "dequantized": stored, "tokens": np.load(reference["tokens.npy"].path)}
    verified = compare(params, {paths.ONE_SHOT: blocks}, arrays, weights)
    rounding = json.loads(dequantized["reference.json"].path.read_text())["rounding"]
    limits = with_rounding(params["limits"], rounding)
    report_json = {**verified.json(), "limits": limits, "rounding": rounding, "ran": False}
    out.path("verify.json").write_bytes(indented(report_json))
    report(verified, out)
    out.fact("not_run", params["kind"])
    check_limits(verified, limits)
