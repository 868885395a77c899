"""Composed values -> a Recipe with nothing left open: the checkpoint found, the architecture read from it, the sizes
decided, every field checked against the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from builder import architectures, schemes, sources
from builder.compose import Composed, Folders, choices_of
from builder.core.errors import UserError
from builder.parse import ALLOWED, Where, check_allowed, parse, unknown_key
from builder.quant.layout import scheme as check_scheme
from builder.recipe import Checkpoint, Dist, Metadata, Model, Pins, Quant, Recipe, Store, Target, Verify
from builder.schemes import scheme_of
from builder.targets.cpu import resolve as resolve_cpu

LARGEST_CHUNK_TOKENS = 2048
SECTIONS = ("name", "model", "quant", "target", "verify", "store", "dist", "pins")


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
    target = resolve_target(parse(Target, values.get("target"), "target", where))
    verify = parse(Verify, values.get("verify"), "verify", where)
    pins = parse(Pins, values.get("pins"), "pins", where)
    check_scheme(scheme_of(replace(quant, rules=())))
    check_method(quant, where)
    model, asked = parse_model(values.get("model"), where)
    checkpoint = sources.locate(model.source, composed.choices["model"])
    family = family_of(model, checkpoint)
    architecture = architecture_of(family, checkpoint, asked, where)
    metadata = decide_metadata(model, architecture, where)
    check_comparable(architecture, metadata, verify)
    quant = schemes.with_rules(quant, family, architecture, folders)
    schemes.check_fits(family, architecture, quant, folders)
    name = name_of(values.get("name"), composed, where)
    return Recipe(
        name, replace(model, architecture=asked), quant, target, verify, pins, family, architecture, metadata,
        checkpoint, composed.choices, composed.overrides,
    )  # fmt: skip


def check_method(quant: Quant, where: Where) -> None:
    """Raises UserError when the scheme leaves the method nothing to choose."""
    if quant.method != "rtn" and quant.kind != "group":
        raise UserError(
            f"quant.method{where('quant.method')}: {quant.method} chooses integers of groups; {quant.name} has none",
            f"build quant={quant.name} quant.method=rtn",
        )


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


def decide_metadata(model: Model, architecture: Mapping[str, Any], where: Where) -> Metadata:
    """Lengths in tokens. Raises UserError for a context longer than the model's positions, a chunk or a window longer
    than the context."""
    positions = int(architecture["max_position_embeddings"])
    context = model.context_window_size or positions
    window, windows = decide_window(model, architecture, context)
    chunk = model.prefill_chunk_size or min(context, LARGEST_CHUNK_TOKENS)
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
    return Metadata(context, window, chunk, sink, model.max_batch_size, model.tensor_parallel_shards)


def decide_window(model: Model, architecture: Mapping[str, Any], context: int) -> tuple[int, tuple[int, int, str]]:
    """The window of all layers in tokens (-1: off) and (lowest, highest, why). A family that has one says so with the
    key sliding_window; null in the recipe means: as the checkpoint says, and off where no context outgrows it."""
    if "sliding_window" not in architecture:
        window = -1 if model.sliding_window_size is None else model.sliding_window_size
        return window, (-1, -1, "-1 is off; this family has no window that a recipe may set")
    own = architecture["sliding_window"] or context
    window = (own if own < context else -1) if model.sliding_window_size is None else model.sliding_window_size
    return window, (-1, -1, "off") if window == -1 else (1, context, "the context window; -1 is off")


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


def resolve_target(target: Target) -> Target:
    """The target with its CPU and features named: "host" becomes what this machine has."""
    cpu, features = resolve_cpu(target.cpu, target.features)
    return replace(target, cpu=cpu, features=features)


def name_of(given: object, composed: Composed, where: Where) -> str:
    """The name of the output folder and of everything in it that carries a name."""
    if given is None:
        return "-".join(composed.choices[g].replace("/", "-") for g in ("model", "quant", "target"))
    text = str(given)
    if not text or text.startswith(".") or any(c in text for c in '/\\\0<>:"|?*') or len(text) > 200:
        raise UserError(f'name{where("name")}: {text!r} cannot name a folder; no / \\ : * ? " < > | or leading dot')
    return text
