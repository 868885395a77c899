"""What each scheme and method costs in quality: held-out perplexity, KL from the original in float32, bits per weight.

    python benchmarks/quality.py [--quant q3f16_1 q4f16_1] [--model demo] [--set KEY=VALUE ...] [--work FOLDER]

Every scheme of conf/quant (or those named), with every method it takes, is quantized by the real engine, dequantized,
and run by transformers in float32 over the whole held-out text: the numbers are those of the stored weights, not of a
library.
Bits per weight count every stored byte, scales and unquantized tensors included. The share is KL over that of rtn.

Ends with exit code 1 if a method is no better than rtn somewhere; if gptq keeps more than 60% of what rtn loses at 3 or
4 bits; if 8 bits (q8, e4m3) are not within 0.1% of the original's perplexity; or if a mixed scheme is above the line
between its neighbours among those measured, KL against bits per weight. These were set for the demo and its held-out
text. Mixed schemes were chosen on that text, so see another: --set verify.text=FILE (benchmarks/prose.py makes one).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "path")]

from llm_build.config import compose  # noqa: E402
from llm_build.config.choices import find_folders  # noqa: E402
from llm_build.config.schema import Recipe  # noqa: E402
from llm_build.core.events import Event, Finished  # noqa: E402
from llm_build.core.filestore import FileStore, open_store  # noqa: E402
from llm_build.core.plan import Goal, Plan  # noqa: E402
from llm_build.core.record import Record  # noqa: E402
from llm_build.core.run import run  # noqa: E402
from llm_build.executors.local import LocalExecutor  # noqa: E402
from llm_build.planner import resolve  # noqa: E402
from llm_build.planner.graph import graph  # noqa: E402
from llm_build.planner.schemes import budget  # noqa: E402
from llm_build.planner.schemes.schemes import schemes_that_quantize  # noqa: E402
from llm_build.quant.methods import METHODS  # noqa: E402
from llm_build.verification.measure import divergence, nll, perplexity  # noqa: E402

ALL_TEXT = ["verify.tokens=10000000", "verify.window=256", "verify.logits_bytes=1000000000"]
LEFT_OUT = ("lower", "package", "verify")
SHARE_OF_GPTQ = 0.6
PERPLEXITY_OF_8_BITS = 0.001
WITHIN = ("group", "e4m3")  # kinds that are held to it at 8 bits


@dataclass(frozen=True)
class Row:
    """One scheme with one method. ``kl`` in nats."""

    scheme: str
    method: str
    kind: str
    bits: int  # of the scheme's integers; 0: none
    line: str  # "mixed", "neighbour" of such (all matrices packed in groups of one scheme, NK, float16), or ""
    bits_per_weight: float
    perplexity: float
    kl: float


def recipes(schemes: list[str], words: list[str], methods: tuple[str, ...] = ("rtn", *METHODS)) -> Iterable[Recipe]:
    """Every scheme, with every method if it has groups to choose integers for."""
    folders = find_folders()
    for scheme in schemes or schemes_that_quantize(folders):
        for method in methods:
            job = [f"quant={scheme}", *words, *ALL_TEXT]
            recipe = resolve.resolve(compose.compose([*job, "quant.method=rtn"], None), folders)
            if method != "rtn":
                if recipe.quant.kind != "group" or recipe.quant.zero_point:
                    break
                recipe = resolve.resolve(compose.compose([*job, f"quant.method={method}"], None), folders)
            yield recipe


def decided(recipe: Recipe, store: FileStore, executor: LocalExecutor) -> Recipe:
    """The recipe with the rules of its budget, which are measured for it."""
    if recipe.undecided:
        plan = graph.build_plan([recipe])
        run(plan, store, executor, fail)
        (recipe,) = budget.with_stored_rules([recipe], plan, store)
    return recipe


def fail(event: Event) -> None:
    if isinstance(event, Finished) and event.error:
        raise SystemExit(f"{event.name}: {event.error.message}")


def measure(recipe: Recipe, store: FileStore, executor: LocalExecutor) -> tuple[Row, float]:
    """The row, and the perplexity of the original."""
    recipe = decided(recipe, store, executor)
    whole = graph.build_plan([recipe])
    kept = {id_: step for id_, step in whole.steps.items() if step.name not in LEFT_OUT}
    outcome = run(Plan(kept, (Goal(recipe.name, tuple(kept), ""),)), store, executor, fail)
    named = {step.name: outcome.records[id_] for id_, step in outcome.plan.steps.items() if id_ in outcome.records}

    def path(record: Record, output: str) -> Path:
        return store.path(record.outputs[output].digest)

    table = json.loads(path(named["shard"], "parameters.json").read_bytes())
    stored_bits = 8 * sum(place["nbytes"] for place in table["parameters"])
    original, built = (np.load(path(named[f"verify.{n}"], "logits.npy")) for n in ("reference", "dequantized"))
    tokens = np.load(path(named["verify.reference"], "tokens.npy"))
    flat = (-1, original.shape[-1])
    kl = divergence(original.reshape(flat), built.reshape(flat)).kl
    path(named["verify.dequantized"], "logits.npy").unlink()  # hundreds of megabytes; the store is this benchmark's own
    quant, found = recipe.quant, perplexity(nll(built, tokens))
    bits_per_weight = stored_bits / table["total_parameters"]
    name = quant.name if quant.budget is None else f"budget {quant.budget:g}"
    row = Row(name, quant.method, quant.kind, quant.bits, line_of(recipe), bits_per_weight, found, kl)
    return row, perplexity(nll(original, tokens))


def line_of(recipe: Recipe) -> str:
    quant = recipe.quant
    if quant.rules:
        return "mixed"
    plain = quant.kind == "group" and not quant.activation and not quant.zero_point  # what mixed schemes are made of
    whole = plain and quant.quantize_embedding and quant.quantize_head
    return "neighbour" if whole and (quant.layout, quant.dtype) == ("NK", "float16") else ""


def show(row: Row, nearest: Row) -> None:
    share = f"{row.kl / nearest.kl:5.2f}" if row.method != "rtn" else ""
    columns = (row.scheme, row.method, f"{row.bits_per_weight:.2f}", f"{row.perplexity:.2f}", f"{row.kl:.2g}", share)
    print("| " + " | ".join(columns) + " |", flush=True)


def complaints(rows: list[Row], original: float) -> list[str]:
    """What is not as it should be; ``original``: its perplexity."""
    nearest = {row.scheme: row for row in rows if row.method == "rtn"}
    found = []
    for row in rows:
        share = row.kl / nearest[row.scheme].kl if row.method != "rtn" else 0.0
        limit = SHARE_OF_GPTQ if row.method == "gptq" and row.bits in (3, 4) else 1.0
        if share >= limit:
            found.append(f"{row.scheme} {row.method} loses {share:.2f} of what rtn loses; at most {limit} is allowed")
        off = abs(row.perplexity / original - 1)
        if row.kind in WITHIN and row.bits == 8 and off > PERPLEXITY_OF_8_BITS:
            found.append(f"{row.scheme} {row.method} has {off:.2%} more or less perplexity than the original")
        above = height(row, rows) if row.line == "mixed" else 0.0
        if above > 1:
            found.append(f"{row.scheme} {row.method} is {above:.2f} times as high as the line between its neighbours")
    return found


def height(row: Row, rows: list[Row]) -> float:
    """KL over that of the line between the nearest schemes with fewer and more bits per weight, by the same method;
    0 if they were not measured."""
    others = sorted((r.bits_per_weight, r.kl) for r in rows if r.line == "neighbour" and r.method == row.method)
    below = [point for point in others if point[0] <= row.bits_per_weight]
    over = [point for point in others if point[0] > row.bits_per_weight]
    if not below or not over:
        return 0.0
    (low, left), (high, right) = below[-1], over[0]
    return row.kl / (left + (right - left) * (row.bits_per_weight - low) / (high - low))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", nargs="*", default=[], help="schemes of conf/quant; all of them")
    parser.add_argument("--budget", nargs="*", default=[], help="bits per weight, whose rules are measured")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="more overrides of the recipe")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "llm-build-quality")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    store, rows = open_store(arguments.work), []
    print("| scheme | method | bits per weight | perplexity | KL, nats | share of rtn's |\n" + "| --- " * 6 + "|")
    try:
        with LocalExecutor(store) as executor:
            words = [f"model={arguments.model}", *arguments.set]
            budgets = [
                recipe for bits in arguments.budget for recipe in recipes(["q4f16_1"], [*words, f"quant.budget={bits}"])
            ]
            for recipe in [*recipes(arguments.quant, words), *budgets]:
                row, original = measure(recipe, store, executor)
                rows.append(row)
                show(row, next(r for r in rows if (r.scheme, r.method) == (row.scheme, "rtn")))
    finally:
        shutil.rmtree(arguments.work, ignore_errors=True)
    print(f"original in float32: perplexity {original:.2f}")
    for row in rows:
        if row.line == "mixed" and (found := height(row, rows)):
            print(f"{row.scheme} {row.method}: KL is {found:.2f} of the line between its neighbours")
    wrong = complaints(rows, original)
    sys.exit("\n".join(wrong) if wrong else 0)


if __name__ == "__main__":
    main()
