"""Composed values -> a Recipe with nothing left open: the checkpoint found, the architecture read from it, the sizes
decided, every field checked against the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any, NamedTuple, TypeVar

from llm_build import architectures
from llm_build.config.choices import GROUPS, Composed, Folders, choices_of
from llm_build.config.schema import (
    Budget,
    Checkpoint,
    Model,
    Package,
    Pins,
    Quant,
    Recipe,
    Sweep,
    Target,
    Verify,
)
from llm_build.config.strict import ALLOWED, Where, check_allowed, parse, unknown_key
from llm_build.config.yaml_files import read_text
from llm_build.core.errors import Unsupported, UserError
from llm_build.planner import names, sources
from llm_build.planner.cell_memo import CellMemo
from llm_build.planner.feasibility import sharding, sizing
from llm_build.planner.feasibility.comparable import check_comparable
from llm_build.planner.schemes import imported, schemes
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.quant.layout import parse_scheme
from llm_build.targets import cuda, link, mlc_apps
from llm_build.targets.cpu import HOST, triple_of
from llm_build.targets.cpu import resolve as resolve_cpu

T = TypeVar("T")
_SECTIONS = ("name", *GROUPS[:-1], "store", "dist", "pins", "provenance", "sweep")


def origin_of(composed: Composed, folders: Folders | None = None) -> Where:
    """Says where a value was written: the command line, a recipe, or the file of the choice."""

    def where(path: str) -> str:
        if any(o.lstrip("+").partition("=")[0].startswith(path) for o in composed.overrides):
            return " (on the command line)"
        group = path.partition(".")[0]
        if folders is None or group not in composed.choices:
            return ""
        file = choices_of("recipe", folders).get(composed.choices.get("recipe", ""))
        if file and path.rpartition(".")[2] in read_text(file):
            return f" (in {file})"
        chosen = choices_of(group, folders).get(composed.choices[group])
        return f" (in {chosen})" if chosen else ""

    return where


def resolve(composed: Composed, folders: Folders, memo: CellMemo | None = None) -> Recipe:
    """One job's recipe. Raises UserError with the path of whatever cannot stand.

    ``memo``: shared by the cells of a sweep, whose equal sections are the same objects.
    """
    where, choice, memo = origin_of(composed, folders), composed.choices, memo or CellMemo()
    parts = _parse_sections(composed, where, memo)
    source, own_keys, quant = parts.model, parts.own_keys, parts.quant

    def check_capable(quant: Quant, target: Target) -> None:
        of = (quant, target, choice["target"])
        memo("capable", of, lambda: _check_capabilities(quant, target, choice["target"], folders))

    check_capable(quant, parts.target)
    model, target = _decide_sharding(source, parts.target, choice["target"], where, memo)
    checkpoint = memo("checkpoint", (source, choice["model"]), lambda: sources.locate(source.source, choice["model"]))
    memo("imported", (quant, checkpoint), lambda: imported.check(quant, checkpoint))
    family, architecture = memo(
        "architecture", (source, checkpoint, own_keys),
        lambda: _recognise_architecture(source, checkpoint, own_keys, where),
    )  # fmt: skip
    metadata = memo("sizes", (model, architecture), lambda: sizing.decide_metadata(model, architecture, where))
    quant = memo(
        "rules", (parts.quant, checkpoint, architecture),
        lambda: _with_scheme_rules(parts.quant, checkpoint, family, architecture, folders),
    )  # fmt: skip
    if quant.method == imported.METHOD:
        check_capable(quant, target)
    memo("fits", (quant, architecture), lambda: schemes.check_fits(family, architecture, quant, folders))
    shards = metadata.tensor_parallel_shards
    memo(
        "cut", (quant, architecture, target, shards),
        lambda: sharding.check(family, architecture, quant, target, shards, folders),
    )  # fmt: skip
    metadata = sizing.fit(model, metadata, family, architecture, quant, target, choice["target"], folders, memo)
    check_comparable(architecture, metadata, parts.verify)
    budget = _decide_budget(quant, family, architecture, folders, where)
    model = memo("model", (model, own_keys), lambda: replace(model, architecture=own_keys))
    return Recipe(
        names.name_of(composed, where), model, quant, target, parts.verify, parts.pins, family, architecture, metadata,
        checkpoint, _recorded_choices(choice), composed.overrides, budget, budget is not None, parts.package,
        names.label_of(composed), names.scheme_label(composed),
    )  # fmt: skip


class _Sections(NamedTuple):
    """The sections of a job, each checked by itself. ``own_keys``: those of the model's architecture."""

    model: Model
    own_keys: dict[str, Any]
    quant: Quant
    target: Target
    package: Package
    verify: Verify
    pins: Pins


def _parse_sections(composed: Composed, where: Where, memo: CellMemo) -> _Sections:
    """Raises UserError for an unknown section and for what cannot stand in one."""
    values = composed.values
    for key in values:
        if key not in _SECTIONS:
            raise unknown_key(str(key), _SECTIONS, where)

    def section(name: str, read: Callable[[object, Where], T]) -> T:
        return memo(f"section {name}", (values.get(name),), lambda: read(values.get(name), where))

    quant, target = section("quant", _read_quant), section("target", _read_target)
    package = section("package", lambda data, where: parse(Package, data, "package", where))
    _check_package(package, target)
    verify = section("verify", lambda data, where: parse(Verify, data, "verify", where))
    pins = section("pins", lambda data, where: parse(Pins, data, "pins", where))
    if "sweep" in values:
        section("sweep", lambda data, where: parse(Sweep, data, "sweep", where))
    model, own_keys = section("model", _parse_model)
    return _Sections(model, own_keys, quant, target, package, verify, pins)


def _recognise_architecture(
    model: Model, checkpoint: Checkpoint, own_keys: Mapping[str, Any], where: Where
) -> tuple[str, dict[str, Any]]:
    """The family and its architecture."""
    family = _family_of(model, checkpoint)
    return family, _architecture_of(family, imported.without_quantization(checkpoint), own_keys, where)


def _decide_sharding(source: Model, target: Target, choice: str, where: Where, memo: CellMemo) -> tuple[Model, Target]:
    """sharding.decide, with one object for all cells that spread a model, or a target, alike."""
    model, with_gpus = memo(
        "sharding", (source, target, choice), lambda: sharding.decide(source, target, choice, where)
    )
    return memo("shards", (source, model.tensor_parallel_shards), lambda: model), memo(
        "gpus", (target, with_gpus.gpus), lambda: with_gpus
    )


def _read_quant(data: object, where: Where) -> Quant:
    quant = parse(Quant, data, "quant", where)
    if quant.method == "auto":
        quant = replace(quant, method=names.automatic_method(quant.kind, quant.zero_point))
    parse_scheme(scheme_of(replace(quant, rules=())))
    _check_method(quant, where)
    return quant


def _read_target(data: object, where: Where) -> Target:
    target = parse(Target, data, "target", where)
    stated = frozenset(data) if isinstance(data, Mapping) else frozenset()
    _check_library(target, where)
    return _resolve_target(target, stated)


def _with_scheme_rules(
    quant: Quant, checkpoint: Checkpoint, family: str, architecture: Mapping[str, Any], folders: Folders
) -> Quant:
    """The scheme as it is for this model: with its rules spelled out, or as the checkpoint was quantized."""
    if quant.method == imported.METHOD:
        return imported.imported_quant(quant, checkpoint, family, architecture)
    return schemes.resolve_rules(quant, family, architecture, folders)


def _recorded_choices(choices: Mapping[str, str]) -> dict[str, str]:
    """The choices that decide what is made; who makes it is none of them."""
    return {group: choice for group, choice in choices.items() if group != "executor"}


def _decide_budget(
    quant: Quant, family: str, architecture: Mapping[str, Any], folders: Folders, where: Where
) -> Budget | None:
    """What quant.budget picks its rules from; a recipe without one loads nothing for it."""
    if quant.budget is None:
        return None
    from llm_build.planner.schemes import budget

    return budget.budget_of(quant, family, architecture, folders, where)


def _check_package(package: Package, target: Target) -> None:
    """Raises Unsupported when the target's library is not what the package's runtime loads."""
    if package.kind == "web_page" and target.kind != "webgpu":
        raise Unsupported(
            f"package=web_page needs a library for browsers; the target is of kind {target.kind}",
            "build target=webgpu package=web_page, or target=webgpu-f32 for browsers without shader-f16",
        )
    if package.kind in mlc_apps.APPS and not mlc_apps.package_fits(
        package.kind, target.kind, target.triple, target.library
    ):
        system = mlc_apps.APPS[package.kind][1]
        raise Unsupported(
            f"package={package.kind} needs objects for {system}; the target is of kind {target.kind}, for "
            f"{target.triple}, its library of kind {target.library}",
            f"build target={system} package={package.kind}",
        )


def _check_method(quant: Quant, where: Where) -> None:
    """Raises UserError when the scheme leaves the method nothing to choose."""
    if (quant.method == imported.METHOD) != (quant.name == imported.METHOD):
        raise UserError(
            f"quant.method{where('quant.method')}: found {quant.method} with {quant.name}; quant=imported, and nothing "
            "else, takes a checkpoint's own integers",
            "build quant=imported",
        )
    if quant.zero_point and quant.method != "rtn":
        raise UserError(
            f"quant.method{where('quant.method')}: {quant.method} chooses scales around a zero in the middle; "
            f"{quant.name} has zero points; allowed: rtn",
            f"build quant={quant.name} quant.method=rtn",
        )
    if quant.method not in ("rtn", imported.METHOD) and quant.kind != "group":
        raise UserError(
            f"quant.method{where('quant.method')}: {quant.method} chooses integers of groups; {quant.name} has none",
            f"build quant={quant.name} quant.method=rtn",
        )


def _check_capabilities(quant: Quant, target: Target, choice: str, folders: Folders) -> None:
    """Raises Unsupported when the target cannot be built for at all, or cannot compute the scheme."""
    if target.refused:
        raise Unsupported(f"target={choice}: {target.refused}", "build list target")
    if target.kind != "cpu":  # which computes everything
        from llm_build.planner.feasibility import capabilities

        capabilities.check(quant, target, choice, folders)


def _parse_model(data: object, where: Where) -> tuple[Model, dict[str, Any]]:
    """The model section, and the keys of it that belong to the family's architecture."""
    if not isinstance(data, Mapping):
        raise UserError(f"model{where('model')}: expected a mapping, got {data!r}")
    own = {f.name for f in fields(Model)} - {"architecture"}
    foreign = [key for key in data if key not in own]
    if foreign:  # only then are the families loaded: a build with nothing to do has no time for them
        known = own | {name for family in architectures.FAMILIES for name in _architecture_keys(family)}
        for key in foreign:
            if key not in known:
                raise unknown_key(f"model.{key}", known, where)
    model = parse(Model, {k: v for k, v in data.items() if k in own}, "model", where)
    return model, {k: v for k, v in data.items() if k not in own and v is not None}


def _architecture_keys(family: str) -> list[str]:
    return [f.name for f in fields(architectures.load(family).Config)]


def _family_of(model: Model, checkpoint: Checkpoint) -> str:
    """The family of the checkpoint; the recipe may name it, not change it."""
    family = architectures.recognise(dict(checkpoint.config))
    if model.family == "auto":
        return family
    check_allowed(
        model.family, "model.family", lambda _: "", {**ALLOWED, "model.family": tuple(architectures.FAMILIES)}
    )
    if model.family != family:
        raise UserError(
            f"model.family is {model.family}, but {checkpoint.root / 'config.json'} says model_type "
            f"{checkpoint.config.get('model_type')!r} (family {family})",
            f"build model=auto model.source={checkpoint.root}",
        )
    return family


def _architecture_of(family: str, checkpoint: Checkpoint, own_keys: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """The family's Config as a dict: config.json, with what the recipe says laid over it."""
    module = architectures.load(family)
    config = module.from_hf(dict(checkpoint.config))
    types = {f.name: f.type for f in fields(module.Config)}
    for key in own_keys:
        if key not in types:
            raise unknown_key(f"model.{key}", types, where)
    return asdict(module.apply_overrides(config, _parse_architecture_keys(module.Config, own_keys, where)))


def _parse_architecture_keys(config: type, own_keys: Mapping[str, Any], where: Where) -> dict[str, Any]:
    from typing import get_type_hints

    from llm_build.config.strict import convert

    hints = get_type_hints(config)
    return {k: convert(hints[k], v, f"model.{k}", where, ALLOWED) for k, v in own_keys.items()}


_LIBRARIES = {  # target.kind: what its library can be
    "cpu": ("so", "tar"), "cuda": ("so",), "webgpu": ("wasm",), "metal": ("tar",), "opencl": ("tar", "so"),
}  # fmt: skip


def _check_library(target: Target, where: Where) -> None:
    """Raises UserError for a library that nothing here makes, or nothing there loads."""
    allowed = _LIBRARIES.get(target.kind, (target.library,))
    if target.library not in allowed:
        raise UserError(
            f"target.library{where('target.library')}: found {target.library}; a target of kind {target.kind} allows: "
            f"{', '.join(allowed)}",
            "build list target",
        )


def _resolve_target(target: Target, stated: frozenset[str]) -> Target:
    """The target with its CPU and features named, and the architectures of its GPU: "host" becomes what this machine
    has. The host code of a GPU's library is for any processor of its triple. ``stated``: keys that have a value of
    their own, which no default of the schema stands for; those are never replaced."""
    if target.kind == "cpu":
        cpu, features = resolve_cpu(target.cpu, target.features)
        triple = triple_of(cpu, target.triple if "triple" in stated else None, target.cpu == HOST)
        library = target.library if "library" in stated else link.library_for(triple)
        return replace(target, cpu=cpu, features=features, triple=triple, library=library)
    arch = cuda.resolve(target.arch) if target.kind == "cuda" else target.arch
    return replace(target, cpu="", features=(), arch=arch)
