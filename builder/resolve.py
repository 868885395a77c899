"""Composed values -> a Recipe with nothing left open: the checkpoint found, the architecture read from it, the sizes
decided, every field checked against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from builder import architectures, imported, schemes, sizing, sources
from builder.compose import Composed, Folders, choices_of
from builder.core.errors import Unsupported, UserError
from builder.parse import ALLOWED, Where, check_allowed, nowhere, parse, unknown_key
from builder.quant.layout import scheme as check_scheme
from builder.recipe import (
    Budget,
    Checkpoint,
    Dist,
    Metadata,
    Model,
    Package,
    Pins,
    Quant,
    Recipe,
    Store,
    Target,
    Verify,
)
from builder.schemes import scheme_of
from builder.targets import apps, cuda, link
from builder.targets.cpu import resolve as resolve_cpu
from builder.targets.cpu import triple_of

SECTIONS = ("name", "model", "quant", "target", "package", "verify", "store", "dist", "pins")


@dataclass(frozen=True, slots=True)
class Places:
    """Where things go. Never part of any identity."""

    store: Path
    dist: Path


def places(composed: Composed) -> Places:
    """store.path and dist.path of a job as absolute paths."""
    store = parse(Store, composed.values.get("store"), "store", writer(composed))
    dist = parse(Dist, composed.values.get("dist"), "dist", writer(composed))
    return Places(store_path(store.path), Path(dist.path).expanduser().absolute())


def store_path(given: str | None = None) -> Path:
    """The store: what the recipe says, else $LLM_BUILD_STORE, else the user's cache folder."""
    import os

    chosen = given or os.environ.get("LLM_BUILD_STORE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return Path(user_cache_path("llm-build")) / "store"


def writer(composed: Composed, folders: Folders | None = None) -> Where:
    """Says where a value was written: the command line, a recipe, or the file of the choice."""

    def where(path: str) -> str:
        if any(o.lstrip("+").partition("=")[0].startswith(path) for o in composed.overrides):
            return " (on the command line)"
        group = path.partition(".")[0]
        if folders is None or group not in composed.choices:
            return ""
        file = choices_of("recipe", folders).get(composed.choices.get("recipe", ""))
        if file and path.rpartition(".")[2] in file.read_text("utf-8", "replace"):
            return f" (in {file})"
        chosen = choices_of(group, folders).get(composed.choices[group])
        return f" (in {chosen})" if chosen else ""

    return where


def resolve(composed: Composed, folders: Folders) -> Recipe:
    """One job's recipe. Raises UserError with the path of whatever cannot stand."""
    where, values = writer(composed, folders), composed.values
    for key in values:
        if key not in SECTIONS:
            raise unknown_key(str(key), SECTIONS, where)
    quant = parse(Quant, values.get("quant"), "quant", where)
    target = parse(Target, values.get("target"), "target", where)
    check_library(target, where)
    target = resolve_target(target)
    package = parse(Package, values.get("package"), "package", where)
    check_package(package, target)
    verify = parse(Verify, values.get("verify"), "verify", where)
    pins = parse(Pins, values.get("pins"), "pins", where)
    check_scheme(scheme_of(replace(quant, rules=())))
    check_method(quant, where)
    check_capabilities(quant, target, composed.choices["target"], folders)
    model, asked = parse_model(values.get("model"), where)
    checkpoint = sources.locate(model.source, composed.choices["model"])
    imported.check(quant, checkpoint)
    family = family_of(model, checkpoint)
    architecture = architecture_of(family, imported.plain(checkpoint), asked, where)
    metadata = sizing.decide_metadata(model, architecture, where)
    if quant.method == imported.METHOD:
        quant = imported.quant_of(quant, checkpoint, family, architecture)
        check_capabilities(quant, target, composed.choices["target"], folders)
    else:
        quant = schemes.with_rules(quant, family, architecture, folders)
    schemes.check_fits(family, architecture, quant, folders)
    metadata = sizing.fit(model, metadata, family, architecture, quant, target, composed.choices["target"], folders)
    check_comparable(architecture, metadata, verify)
    budget = decide_budget(quant, family, architecture, folders, where)
    name = name_of(composed, where)
    return Recipe(
        name, replace(model, architecture=asked), quant, target, verify, pins, family, architecture, metadata,
        checkpoint, composed.choices, composed.overrides, budget, budget is not None, package,
    )  # fmt: skip


def decide_budget(
    quant: Quant, family: str, architecture: Mapping[str, Any], folders: Folders, where: Where
) -> Budget | None:
    """What quant.budget picks its rules from; a recipe without one loads nothing for it."""
    if quant.budget is None:
        return None
    from builder import budget

    return budget.budget_of(quant, family, architecture, folders, where)


def check_package(package: Package, target: Target) -> None:
    """Raises Unsupported when the target's library is not what the package's runtime loads."""
    if package.kind == "web_page" and target.kind != "webgpu":
        raise Unsupported(
            f"package=web_page needs a library for browsers; the target is of kind {target.kind}",
            "build target=webgpu package=web_page, or target=webgpu-f32 for browsers without shader-f16",
        )
    if package.kind in apps.APPS and not apps.fits(package.kind, target.kind, target.triple, target.library):
        system = apps.APPS[package.kind][1]
        raise Unsupported(
            f"package={package.kind} needs objects for {system}; the target is of kind {target.kind}, for "
            f"{target.triple}, its library of kind {target.library}",
            f"build target={system} package={package.kind}",
        )


def check_method(quant: Quant, where: Where) -> None:
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


def check_capabilities(quant: Quant, target: Target, choice: str, folders: Folders) -> None:
    """Raises Unsupported when the target cannot be built for at all, or cannot compute the scheme."""
    if target.refused:
        raise Unsupported(f"target={choice}: {target.refused}", "build list target")
    if target.kind != "cpu":  # which computes everything
        from builder import capabilities

        capabilities.check(quant, target, choice, folders)


def parse_model(data: object, where: Where) -> tuple[Model, dict[str, Any]]:
    """The model section, and the keys of it that belong to the family's architecture."""
    if not isinstance(data, Mapping):
        raise UserError(f"model{where('model')}: expected a mapping, got {data!r}")
    own = {f.name for f in fields(Model)} - {"architecture"}
    foreign = [key for key in data if key not in own]
    if foreign:  # only then are the families loaded: a build with nothing to do has no time for them
        known = own | {name for family in architectures.FAMILIES for name in architecture_keys(family)}
        for key in foreign:
            if key not in known:
                raise unknown_key(f"model.{key}", known, where)
    model = parse(Model, {k: v for k, v in data.items() if k in own}, "model", where)
    return model, {k: v for k, v in data.items() if k not in own and v is not None}


def architecture_keys(family: str) -> list[str]:
    return [f.name for f in fields(architectures.load(family).Config)]


def family_of(model: Model, checkpoint: Checkpoint) -> str:
    """The family of the checkpoint; the recipe may name it, not change it."""
    found = architectures.recognise(dict(checkpoint.config))
    if model.family == "auto":
        return found
    check_allowed(
        model.family, "model.family", lambda _: "", {**ALLOWED, "model.family": tuple(architectures.FAMILIES)}
    )
    if model.family != found:
        raise UserError(
            f"model.family is {model.family}, but {checkpoint.root / 'config.json'} says model_type "
            f"{checkpoint.config.get('model_type')!r} (family {found})",
            f"build model=auto model.source={checkpoint.root}",
        )
    return found


def architecture_of(family: str, checkpoint: Checkpoint, asked: Mapping[str, Any], where: Where) -> dict[str, Any]:
    """The family's Config as a dict: config.json, with what the recipe says laid over it."""
    module = architectures.load(family)
    config = module.from_hf(dict(checkpoint.config))
    types = {f.name: f.type for f in fields(module.Config)}
    for key in asked:
        if key not in types:
            raise unknown_key(f"model.{key}", types, where)
    return asdict(module.apply_overrides(config, typed(module.Config, asked, where)))


def typed(config: type, asked: Mapping[str, Any], where: Where) -> dict[str, Any]:
    from typing import get_type_hints

    from builder.parse import convert

    hints = get_type_hints(config)
    return {k: convert(hints[k], v, f"model.{k}", where, ALLOWED) for k, v in asked.items()}


def check_comparable(architecture: Mapping[str, Any], metadata: Metadata, verify: Verify) -> None:
    """Raises UserError where verify would compare the library with a model that computes something else."""
    if verify.enabled:
        window = min(verify.window, metadata.context_window_size)
        check_same_factors(architecture, metadata.context_window_size, window)
        check_same_window(architecture, metadata, window)


def check_same_factors(architecture: Mapping[str, Any], context: int, window: int) -> None:
    """LongRoPE: transformers takes the factors for the tokens that it sees, a library those for its whole context."""
    if "long_factor" not in (architecture.get("rope_scaling") or ()):
        return
    original = int(architecture["original_max_position_embeddings"])
    if window <= original < context:
        raise UserError(
            f"model.context_window_size: {context} takes this model's long RoPE factors, but transformers takes the "
            f"short ones for the {window} tokens that verify compares (verify.window); allowed: a context of up to "
            f"{original}, or a verify.window beyond it",
            f"build model.context_window_size={original}, or verify.window={original + 1}, or verify=off",
        )


def check_same_window(architecture: Mapping[str, Any], metadata: Metadata, window: int) -> None:
    """A recipe may look through another window than the checkpoint: they agree for as long as both see everything."""
    context, asked = metadata.context_window_size, metadata.sliding_window_size
    own = min(architecture.get("sliding_window") or context, context)
    asked = asked if asked > 0 else context
    if (own != asked or metadata.attention_sink_size) and window > min(own, asked):
        raise UserError(
            f"model.sliding_window_size is {asked} with model.attention_sink_size {metadata.attention_sink_size}, the "
            f"checkpoint's window is {own}: beyond {min(own, asked)} tokens they differ, and verify compares {window}",
            f"build verify.window={min(own, asked)}, or verify=off",
        )


LIBRARIES = {  # target.kind: what its library can be
    "cpu": ("so", "tar"), "cuda": ("so",), "webgpu": ("wasm",), "metal": ("tar",), "opencl": ("tar", "so"),
}  # fmt: skip


def check_library(target: Target, where: Where) -> None:
    """Raises UserError for a library that nothing here makes, or nothing there loads."""
    allowed = LIBRARIES.get(target.kind, (target.library,))
    if target.library not in allowed:
        raise UserError(
            f"target.library{where('target.library')}: found {target.library}; a target of kind {target.kind} allows: "
            f"{', '.join(allowed)}",
            "build list target",
        )


def resolve_target(target: Target) -> Target:
    """The target with its CPU and features named, and the architectures of its GPU: "host" becomes what this machine
    has. The host code of a GPU's library is for any processor of its triple."""
    if target.kind == "cpu":
        cpu, features = resolve_cpu(target.cpu, target.features)
        triple = triple_of(cpu, target.triple)
        library = link.library_for(triple) if target.library == "so" else target.library
        return replace(target, cpu=cpu, features=features, triple=triple, library=library)
    arch = cuda.resolve(target.arch) if target.kind == "cuda" else target.arch
    return replace(target, cpu="", features=(), arch=arch)


def name_of_choices(choices: Mapping[str, str]) -> str:
    """<model>-<quant>-<target>, and -<package> unless that is mlc."""
    chosen = [choices[group].replace("/", "-") for group in ("model", "quant", "target", "package")]
    return "-".join(chosen[:-1] if chosen[-1] == "mlc" else chosen)


def name_of(composed: Composed, where: Where = nowhere) -> str:
    """The name of the output folder and of everything in it that carries a name."""
    given = composed.values.get("name")
    if given is None:
        return name_of_choices(composed.choices)
    text = str(given)
    if not text or text.startswith(".") or any(c in text for c in '/\\\0<>:"|?*') or len(text) > 200:
        raise UserError(f'name{where("name")}: {text!r} cannot name a folder; no / \\ : * ? " < > | or leading dot')
    return text
