"""Over how many GPUs (or, for target=cpu, processes) a model is spread, and whether it can be: refused before any work,
with the counts that work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from llm_build import architectures
from llm_build.architectures.cuts import Cut, local_parameters, per_rank
from llm_build.architectures.weights import Parameter
from llm_build.config.choices import Folders
from llm_build.config.schema import Model, Quant, Target
from llm_build.config.strict import Where
from llm_build.core.errors import Unsupported, UserError
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.quant import cuts
from llm_build.quant.layout import Scheme, parse_scheme

_AUTO = "auto"
_KINDS = ("cpu", "cuda")  # whose runtime has ranks
_MOST = 64  # ranks, of those that are offered
GPUS, SHARDS = "target.gpus", "model.tensor_parallel_shards"


def decide(model: Model, target: Target, choice: str, where: Where) -> tuple[Model, Target]:
    """Both with their numbers: model.tensor_parallel_shards is target.gpus where it is null, and that is 1 where it is
    null too. ``choice``: the target's.

    Raises:
        UserError: auto finds no GPU, or there are fewer GPUs than shards.
        Unsupported: a target of this kind runs a model on one device.
    """
    gpus = _count_gpus(target, where) if target.gpus == _AUTO else target.gpus
    assert gpus is None or isinstance(gpus, int)
    shards = model.tensor_parallel_shards or gpus or 1
    key = _count_key(gpus, shards)
    if shards > 1 and target.kind not in _KINDS:
        raise Unsupported(
            f"{key}={shards}: target={choice} runs a model on one device; targets of kind {' and '.join(_KINDS)} "
            "spread it over several",
            f"build target=cuda {key}={shards}, or {key}=1",
        )
    if gpus is not None and gpus < shards:
        raise UserError(
            f"{SHARDS}{where(SHARDS)}: {shards} shards need as many GPUs, and {GPUS} is {gpus}",
            f"build {GPUS}={shards}",
        )
    return replace(model, tensor_parallel_shards=shards), replace(target, gpus=gpus)


def _count_key(gpus: int | str | None, shards: int) -> str:
    """The key that says how many."""
    return GPUS if gpus == shards else SHARDS


def _count_gpus(target: Target, where: Where) -> int:
    """The GPUs of this machine."""
    from llm_build.targets import nvidia_gpus

    if target.kind != "cuda":
        raise UserError(
            f"{GPUS}{where(GPUS)}: {_AUTO} counts this machine's NVIDIA GPUs; a target of kind {target.kind} allows a "
            "number",
            f"build {GPUS}=1",
        )
    count = nvidia_gpus.count()
    if not count:
        raise UserError(
            f"{GPUS}{where(GPUS)}: {_AUTO}, but nvidia-smi finds no GPU here; say how many there are where it runs",
            f"build target=cuda {GPUS}=2",
        )
    return count


def check(
    family: str, architecture: Mapping[str, Any], quant: Quant, target: Target, shards: int, folders: Folders
) -> None:
    """Raises Unsupported when the model, as the scheme or one that a budget may pick stores it, cannot be cut for
    ``shards`` ranks: what does not divide, the counts that work, and the scheme most like this one that does."""
    if shards == 1:
        return
    own, key = parse_scheme(scheme_of(quant)), _count_key(target.gpus, shards)
    problem = cut_problems(family, architecture)
    misfit = problem(own, shards)
    if not misfit:
        _check_candidates(quant, key, shards, problem, folders)
        return
    from llm_build.planner.feasibility.capabilities import computable_schemes

    counts = [count for count in range(1, _MOST + 1) if not problem(own, count)]
    table = schemes.parameters(family, architecture)
    choices = {name: it for name, it in schemes.choices_without_rules(folders).items() if schemes.can_pack(it, table)}
    fitting = {name: it for name, it in computable_schemes(target, choices).items() if not problem(it, shards)}
    best = schemes.nearest_scheme(own, fitting)
    fewer = max(count for count in counts if count < shards)
    raise Unsupported(
        f"{key}={shards}: {misfit}; with quant={quant.name} this model can be cut for: {', '.join(map(str, counts))}",
        f"build {key}={fewer}" + (f" or quant={best}" if best else ""),
    )


def _check_candidates(
    quant: Quant, key: str, shards: int, problem: Callable[[Scheme, int], str], folders: Folders
) -> None:
    """Raises Unsupported when a budget could pick a scheme that cannot be cut; ``key``: what says ``shards``."""
    if quant.budget is None:
        return
    misfits = {name: problem(parse_scheme(schemes.table_of_choice(name, folders)), shards) for name in quant.candidates}
    good, bad = ([name for name in misfits if bool(misfits[name]) == wrong] for wrong in (False, True))
    if bad:
        offered = f"quant.candidates=[{','.join(good)}]" if len(good) > 1 else f"{key}=1"
        raise Unsupported(f"{key}={shards}: {misfits[bad[0]]} in {bad[0]}, one of quant.candidates", f"build {offered}")


def cut_problems(family: str, architecture: Mapping[str, Any]) -> Callable[[Scheme, int], str]:
    """What says why the model in a scheme cannot be cut for a number of ranks; "": it can."""
    table, cut = schemes.parameters(family, architecture), _cuts_of(family, architecture)
    return lambda scheme, count: next(
        filter(None, (cuts.split_problem(each, cut, scheme, count) for each in table)), ""
    )


def _cuts_of(family: str, architecture: Mapping[str, Any]) -> Mapping[str, Cut]:
    """Module name -> its cut."""
    module = architectures.load(family)
    return module.cuts(module.from_architecture(architecture))


def of_each_rank(
    family: str, architecture: Mapping[str, Any], shards: int
) -> tuple[tuple[Parameter, ...], Mapping[str, Any]]:
    """The model's parameters, and its architecture's counts of heads, as each rank has them."""
    table = schemes.parameters(family, architecture)
    if shards == 1:
        return table, architecture
    own = {"num_attention_heads": per_rank(architecture["num_attention_heads"], shards)}
    return local_parameters(table, _cuts_of(family, architecture), shards), {**architecture, **own}
