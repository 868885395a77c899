"""Whose artifact an output folder holds: that of another recipe is replaced only when asked."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from llm_build.app.request import BuildRequest
from llm_build.config.schema import Recipe
from llm_build.core.errors import UserError
from llm_build.core.filestore import FileStore
from llm_build.core.json_text import NotJson, parse_json
from llm_build.core.small_file import read_small
from llm_build.provenance.statement import NAME

_MOST_BYTES = 256 << 20


def check_not_of_another(recipe: Recipe, request: BuildRequest) -> None:
    """Raises UserError where build.json says that another recipe, or another checkpoint, gave what is there."""
    folder = request.outputs[recipe.name]
    source = request.store.made_from.get(str(folder))
    text = "" if request.replace else _document_in(folder)
    if source == _source_of(recipe) and f'"label": {json.dumps(recipe.label)}' in text:
        return  # what a build with nothing to do meets: no time to parse it
    held = _recipe_in(text)
    if held and (what := _other(held, recipe, source)):
        raise UserError(
            f"{folder} holds what another build gave: {what}. It is not replaced unasked",
            "name=another-name, or dist.replace=true to replace it",
        )


def remember_source(recipe: Recipe, folder: Path, store: FileStore) -> None:
    """Notes which checkpoint an output folder came from: build.json holds no path of this machine."""
    source = _source_of(recipe)
    if store.made_from.get(str(folder)) != source:
        store.made_from.put(str(folder), source)


def _other(held: dict[str, Any], recipe: Recipe, source: str | None) -> str:
    """What is different about the recipe in a folder, in words; "" where it is this one."""
    if "label" in held:
        if held["label"] != recipe.label:
            return f"{held['label']}; this one is {recipe.label}"
    elif (old := _before_labels(held)) != (new := _before_labels(_as_held(recipe))):
        return f"{', '.join(map(str, old))}; this one is {', '.join(map(str, new))}"
    before, now = _repository(held["model"]["source"]), _repository(recipe.checkpoint.uri or "folder")
    if before != now:
        return f"model.source={before}; this one is {now}"
    here = recipe.checkpoint.root
    if now == "folder" and source and os.path.isdir(source) and not os.path.samefile(source, here):
        return f"model.source={source}; this one is {here}"
    return ""


def _before_labels(held: dict[str, Any]) -> list[Any]:
    """What build.json of versions before 'label' tells recipes apart by."""
    choices, quant = held["choices"], held["quant"]
    return [*(choices.get(group) for group in ("recipe", "model", "quant", "target", "package")),
            quant.get("method"), quant.get("budget")]  # fmt: skip


def _as_held(recipe: Recipe) -> dict[str, Any]:
    return {"choices": recipe.choices, "quant": {"method": recipe.quant.method, "budget": recipe.quant.budget}}


def _repository(source: str) -> str:
    return source.partition("@")[0]


def _source_of(recipe: Recipe) -> str:
    return recipe.checkpoint.uri or str(recipe.checkpoint.root)


def _document_in(folder: Path) -> str:
    """build.json of a folder, "" where none can be read."""
    try:
        return read_small(folder / NAME, _MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError):
        return ""


def _recipe_in(text: str) -> dict[str, Any] | None:
    """The recipe that build.json tells of; None where it tells of none."""
    try:
        held: dict[str, Any] = parse_json(text)["predicate"]["buildDefinition"]["externalParameters"]["recipe"]
        return held if {"choices", "quant"} <= held.keys() and "source" in held["model"] else None
    except (NotJson, KeyError, TypeError, AttributeError):
        return None
