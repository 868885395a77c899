"""How long the context, the window and the prefill chunk are, and how many sequences: checked against the model, and
against the memory of the target. ``auto`` is the largest number that fits: the context first, then the chunk, then the
sequences; while one is looked for, those that come later stand at the least that is of use (512 tokens, or where
that is too much FLOORS)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from llm_build.config.choices import Folders
from llm_build.config.schema import Metadata, Model, Quant, Recipe, Target
from llm_build.config.strict import Where
from llm_build.core.errors import Unsupported, UserError
from llm_build.core.units import count_of, format_bytes
from llm_build.planner.cell_memo import CellMemo
from llm_build.planner.feasibility import sharding
from llm_build.planner.feasibility.device_memory import (
    PAGE_TOKENS,
    Memory,
    Shapes,
    largest_tensor,
    memory_needed,
    model_shapes,
)
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.quant.layout import Scheme, parse_scheme

_AUTO = "auto"
LARGEST_CHUNK_TOKENS, GOOD_CHUNK_TOKENS = 2048, 512
_MORE_GPUS = (2, 4, 8)  # of one host, that are offered
LARGEST_BATCH, USUAL_BATCH = 64, 4  # of auto: where memory is limited, and where it is not known
CONTEXT, CHUNK = "context_window_size", "prefill_chunk_size"
FLOORS = {CONTEXT: 512, CHUNK: 128, "max_batch_size": 1}  # of auto, in its order


def decide_metadata(model: Model, architecture: Mapping[str, Any], where: Where) -> Metadata:
    """Lengths in tokens; an auto is the largest that the model allows, whatever memory that takes.

    Raises UserError for a context longer than the model's positions, a chunk or a window longer than the context.
    """
    positions = int(architecture["max_position_embeddings"])
    context = number(model.context_window_size) or positions
    window, windows = _decide_window(model, architecture, context)
    chunk = number(model.prefill_chunk_size) or min(context, LARGEST_CHUNK_TOKENS)
    sink = model.attention_sink_size or 0
    bounds = {
        "context_window_size": (context, 1, positions, "the model's max_position_embeddings"),
        "prefill_chunk_size": (chunk, 1, context, "the context window"),
        "attention_sink_size": (sink, 0, max(window - 1, 0), "the window less one; 0 while the window is off"),
        "sliding_window_size": (window, *windows),
    }
    for key, (value, low, high, limit) in bounds.items():
        if not low <= value <= high:
            at, span = f"model.{key}{where(f'model.{key}')}", f"{low} to {high}" if low < high else f"{low}"
            raise UserError(f"{at}: {value} is not possible; allowed: {span} ({limit})")
    return Metadata(
        context, window, chunk, sink, number(model.max_batch_size) or USUAL_BATCH, model.tensor_parallel_shards or 1
    )


def number(value: int | str | None) -> int | None:
    """What a recipe says, if that is a number."""
    return value if isinstance(value, int) else None


def _decide_window(model: Model, architecture: Mapping[str, Any], context: int) -> tuple[int, tuple[int, int, str]]:
    """The window of all layers in tokens (-1: off) and (lowest, highest, why). A family that has one says so with the
    key sliding_window; null and auto in the recipe mean: as the checkpoint says, and off where no context outgrows it
    (a window takes no less memory: every token stays in the cache)."""
    configured = number(model.sliding_window_size)
    if "sliding_window" not in architecture:
        window = -1 if configured is None else configured
        return window, (-1, -1, "-1 is off; this family has no window that a recipe may set")
    own = architecture["sliding_window"] or context
    window = (own if own < context else -1) if configured is None else configured
    return window, (-1, -1, "off") if window == -1 else (1, context, "the context window; -1 is off")


def memory_of(recipe: Recipe) -> Memory:
    """What running the recipe's library takes, on each of its GPUs."""
    shards = recipe.metadata.tensor_parallel_shards
    table, architecture = sharding.of_each_rank(recipe.family, recipe.architecture, shards)
    model = model_shapes(table, architecture, parse_scheme(scheme_of(recipe.quant)), recipe.target, shards)
    return memory_needed(model, recipe.metadata)


class _TargetBudget(NamedTuple):
    """A target's memory, and the model that it shall hold."""

    name: str  # of the target
    target: Target
    shapes: Shapes

    def fits(self, sizes: Metadata) -> bool:
        """Whether everything fits, and every tensor can be given to a kernel."""
        memory, binding = self.target.memory_bytes, self.target.limits.max_binding_bytes
        enough = memory is None or memory_needed(self.shapes, sizes).total <= memory
        return enough and (not binding or largest_tensor(self.shapes, sizes)[1] <= binding)


def fit(
    model: Model, largest: Metadata, family: str, architecture: Mapping[str, Any], quant: Quant, target: Target,
    name: str, folders: Folders, memo: CellMemo,
) -> Metadata:  # fmt: skip
    """``largest`` (see decide_metadata) with its autos made as small as the memory of the target ``name`` asks.

    Raises Unsupported when what the recipe fixes does not fit: what takes how much, and the largest that would.
    """
    limited = target.memory_bytes is not None or target.limits.max_binding_bytes
    if not limited and _AUTO not in (getattr(model, key) for key in FLOORS):
        return largest
    shards, wanted = largest.tensor_parallel_shards, memo("scheme", (quant,), lambda: parse_scheme(scheme_of(quant)))
    table, own_architecture = memo(
        "rank", (architecture, shards), lambda: sharding.of_each_rank(family, architecture, shards)
    )

    def in_scheme(candidate: Scheme) -> Shapes:
        return model_shapes(table, own_architecture, candidate, target, shards)

    def others() -> Alternatives:
        from llm_build.planner.feasibility.capabilities import computable_schemes

        choices, problem = (
            computable_schemes(target, schemes.choices_without_rules(folders)),
            sharding.cut_problems(family, architecture),
        )
        fitting = {k: it for k, it in choices.items() if schemes.can_pack(it, table) and not problem(it, shards)}
        counts = [n for n in _MORE_GPUS if n > shards and target.kind == "cuda" and not problem(wanted, n)]
        spread = {n: model_shapes(*sharding.of_each_rank(family, architecture, n), wanted, target, n) for n in counts}
        return Alternatives({name: in_scheme(candidate) for name, candidate in fitting.items()}, spread)

    bounds = (target.runtime_bytes, target.max_sequences)  # all of the target that shapes reads
    own = memo("shapes", (quant, architecture, shards, *bounds), lambda: in_scheme(wanted))
    if quant.budget is not None:
        allowed = int(quant.budget * sum(prod(parameter.shape) for parameter in table) / 8)
        own = replace(own, spare=max(0, allowed - sum(own.weights.values())))
    return _decide_autos(model, largest, _TargetBudget(name, target, own), others)


class Alternatives(NamedTuple):
    """The model in the schemes that can hold it, and on more GPUs, for the suggestion."""

    schemes: Mapping[str, Shapes]
    gpus: Mapping[int, Shapes]


def _decide_autos(
    model: Model, largest: Metadata, budget: _TargetBudget, others: Callable[[], Alternatives]
) -> Metadata:
    autos = [key for key in FLOORS if getattr(model, key) == _AUTO]
    for chunk in (GOOD_CHUNK_TOKENS, FLOORS[CHUNK]):  # the context is long, but not at the price of a crawling prefill
        sizes = largest
        for key, value in ((CHUNK, chunk), ("max_batch_size", 1)):
            sizes = resized(sizes, key, min(value, getattr(largest, key))) if key in autos else sizes
        least = resized(sizes, CONTEXT, _floor(CONTEXT, model, largest)) if CONTEXT in autos else sizes
        if budget.fits(least):
            break
    else:
        raise Unsupported(_refusal(least, budget), _suggest_fix(model, least, budget, others))
    for key in autos:
        sizes = resized(sizes, key, _largest_number(key, sizes, _upper(key, largest, sizes, budget), budget) or 1)
    return sizes


def _floor(key: str, model: Model, largest: Metadata) -> int:
    """How small an auto may become: a context holds the chunk and the window that the recipe asks for."""
    fixed = (number(model.prefill_chunk_size) or 0, number(model.sliding_window_size) or 0)
    least = max(FLOORS[key], *fixed) if key == CONTEXT else FLOORS[key]
    return min(least, int(getattr(largest, key)))


def _upper(key: str, largest: Metadata, sizes: Metadata, budget: _TargetBudget) -> int:
    """How large an auto may become: as the model allows, and of use."""
    if key == "max_batch_size":
        unknown = budget.target.memory_bytes is None
        return budget.target.max_sequences or (largest.max_batch_size if unknown else LARGEST_BATCH)
    if key == CHUNK:
        return min(sizes.context_window_size, LARGEST_CHUNK_TOKENS)
    return largest.context_window_size


def resized(sizes: Metadata, key: str, value: int) -> Metadata:
    """With another number; a chunk and a window are no longer than the context."""
    if key != CONTEXT:
        return replace(sizes, **{key: value})
    window = -1 if sizes.sliding_window_size >= value else sizes.sliding_window_size
    chunk = min(sizes.prefill_chunk_size, value)
    sink = sizes.attention_sink_size if window > 0 else 0
    return replace(
        sizes, context_window_size=value, prefill_chunk_size=chunk, sliding_window_size=window, attention_sink_size=sink
    )


def _largest_number(key: str, sizes: Metadata, high: int, budget: _TargetBudget) -> int | None:
    """The largest number from 1 to ``high`` that fits, a context in whole pages; None when none does."""
    step = PAGE_TOKENS if key == CONTEXT else 1
    if budget.fits(resized(sizes, key, high)):
        return high
    low, high = 0, -(-high // step)  # steps: low fits, or is none; high does not fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if budget.fits(resized(sizes, key, middle * step)) else (low, middle)
    return low * step or None


def _refusal(sizes: Metadata, budget: _TargetBudget) -> str:
    """What does not fit."""
    memory, needed = budget.target.memory_bytes, memory_needed(budget.shapes, sizes)
    if memory is not None and needed.total > memory:
        return f"target={budget.name}: too little memory: {describe_memory(needed, sizes, budget.target)}"
    what, nbytes = largest_tensor(budget.shapes, sizes)
    limit = format_bytes(budget.target.limits.max_binding_bytes)
    return f"target={budget.name} takes tensors of up to {limit} (target.limits); {what} has {format_bytes(nbytes)}"


def describe_memory(memory: Memory, sizes: Metadata, target: Target) -> str:
    """9.1 GB of 8.0 GB: weights 3.8 GB, KV cache 4.3 GB (4 sequences of 4096 tokens), ..."""
    count = min(sizes.max_batch_size, target.max_sequences or sizes.max_batch_size)
    tokens = f"{count_of(count, 'sequence')} of {count_of(sizes.context_window_size, 'token')}"
    parts = [f"weights {format_bytes(memory.weights)}", f"KV cache {format_bytes(memory.cache)} ({tokens})"]
    parts += [f"activations {format_bytes(memory.activations)}", f"runtime {format_bytes(memory.runtime)}"]
    limit = f" of {format_bytes(target.memory_bytes)}" if target.memory_bytes else ""
    if sizes.tensor_parallel_shards > 1:
        limit += f" on each of {sizes.tensor_parallel_shards} {'processes' if target.kind == 'cpu' else 'GPUs'}"
    return f"{format_bytes(memory.total)}{limit}: {', '.join(parts)}"


def _suggest_fix(model: Model, sizes: Metadata, budget: _TargetBudget, others: Callable[[], Alternatives]) -> str:
    """The next command: the largest of each number that would fit with the others as they are, else all at once, else
    more GPUs or another scheme."""
    single = list(_alternatives(model, sizes, budget))
    if single:
        return f"build {' or '.join(single)}   (the largest that fit; auto finds them)"
    least = sizes
    for key, smallest in FLOORS.items():
        least = resized(least, key, min(smallest, getattr(least, key)))
    if budget.fits(least):
        return "build " + " ".join(f"model.{key}={_AUTO}" for key in FLOORS)
    known = others()
    fitting = {name: model for name, model in known.schemes.items() if budget._replace(shapes=model).fits(least)}
    best = sorted(fitting, key=lambda name: -sum(fitting[name].weights.values()))[:3]
    enough = [count for count, model in known.gpus.items() if budget._replace(shapes=model).fits(least)][:1]
    suggestions = [*(f"{sharding.GPUS}={count}" for count in enough), *(f"quant={name}" for name in best)]
    if suggestions:
        return f"build {' or '.join(suggestions)}, with model.{CONTEXT}={_AUTO}"
    return "a smaller model, or a larger target: build list target"


def _alternatives(model: Model, sizes: Metadata, budget: _TargetBudget) -> Iterator[str]:
    """The numbers of which a smaller one alone would do, with the largest such."""
    for key in (CONTEXT, "max_batch_size", CHUNK):
        value = _largest_number(key, sizes, getattr(sizes, key), budget)
        if value is not None and value >= _floor(key, model, sizes):
            yield f"model.{key}={value}"
