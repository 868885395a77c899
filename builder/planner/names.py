"""What a build is called: its choices, and whatever else changes the bytes of its artifact."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from llm_build.config.choices import CHOICE, PRIMARY, Composed, choices_of, find_folders
from llm_build.config.strict import Where, nowhere
from llm_build.config.yaml_files import read_mapping
from llm_build.core.errors import UserError

_SECTIONS = ("model", "quant", "target", "package")
_ELSEWHERE = ("model.source", "model.family", "model.allow_nonfinite")  # source: in place of auto; others: no bytes
_LONGEST_TAIL = 120  # characters
_CUT_HEX = 6  # of the digest of a value that a name does not hold whole


def name_of(composed: Composed, where: Where = nowhere) -> str:
    """The name of the output folder and of everything in it that carries a name."""
    name = composed.values.get("name")
    if name is None:
        return default_name(composed)
    text = str(name)
    if not text or text.startswith(".") or any(c in text for c in '/\\\0<>:"|?*') or len(text) > 200:
        raise UserError(f'name{where("name")}: {text!r} cannot name a folder; no / \\ : * ? " < > | or leading dot')
    return text


def default_name(composed: Composed, without: Collection[str] = ()) -> str:
    """<model>-<quant>-<target>, -<package> unless that is mlc, and the keys that differ from the choices' own values.
    Of model=auto the model is the last part of its source. ``without``: keys that are told apart elsewhere."""
    chosen = [composed.choices[group].replace("/", "-") for group in ("model", "quant", "target", "package")]
    if chosen[0] == "auto" and "model.source" not in without:
        chosen[0] = _name_of_source(composed) or chosen[0]
    keys = [key for key in (*_typed(composed), *_of_recipe(composed), *_of_own_files(composed)) if key not in without]
    return _with_tail("-".join(chosen[:-1] if chosen[-1] == "mlc" else chosen), _changed(composed, keys))


def label_of(composed: Composed) -> str:
    """What tells this recipe from others whose artifact a folder may hold. A recipe under version control is the same
    one after an edit; what was typed beside it makes another."""
    recipe = composed.choices.get("recipe")
    if not recipe or recipe == "null":
        return default_name(composed)
    chosen = [text for text in composed.overrides if (match := CHOICE.match(text)) and match["group"] in _SECTIONS]
    return _with_tail(
        ",".join([f"recipe={recipe}", *chosen]), _changed(composed, [*_typed(composed), *_of_own_files(composed)])
    )


def scheme_label(composed: Composed) -> str:
    """The scheme as an artifact names it: the choice, and the keys of the format that are not the choice's own."""
    every = (*_typed(composed), *_of_recipe(composed), *_of_own_files(composed))
    keys = [key for key in every if key.startswith("quant.")]
    same_format = ("method", "damping", "calibration", "max_shard_bytes", "sensitivity_tokens", "candidates")
    own = [key for key in keys if key.split(".")[1] not in (*same_format, "name")]
    return _with_tail(str(composed.section("quant").get("name") or composed.choices["quant"]), _changed(composed, own))


def tail_of(pairs: Mapping[str, Any]) -> str:
    """ "budget=4.5,method=gptq" of {quant.budget: 4.5, quant.method: gptq}."""
    return ",".join(f"{key.rpartition('.')[2]}={_folder_word(value)}" for key, value in pairs.items())


def _with_tail(stem: str, pairs: Mapping[str, Any]) -> str:
    tail = tail_of(pairs)
    if len(tail) > _LONGEST_TAIL:
        tail = hashlib.sha256(tail.encode()).hexdigest()[:12]
    return f"{stem}-{tail}" if tail else stem


def _folder_word(value: object) -> str:
    """A value as part of a folder's name: of a path its last part. What that leaves out is told apart by a digest."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    word = _last_part(text) if isinstance(value, str) else _cleaned(text)
    return word if word == text else f"{word}-{hashlib.sha256(text.encode()).hexdigest()[:_CUT_HEX]}"


def _last_part(path: str) -> str:
    return _cleaned(path.rstrip("/").rpartition("/")[2])


def _cleaned(text: str) -> str:
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_")


def _name_of_source(composed: Composed) -> str:
    source = str(composed.section("model").get("source") or "")
    if not source.startswith("hf://"):
        source = Path(source).expanduser().absolute().resolve().name if source in (".", "..") else source
    repository = source.partition("@")[0] if source.startswith("hf://") else source
    return _last_part(repository).lstrip(".")


def _typed(composed: Composed) -> list[str]:
    """Keys of the command line that decide bytes."""
    keys = [text.lstrip("+").partition("=")[0] for text in composed.overrides if not CHOICE.match(text)]
    return [key for key in dict.fromkeys(keys) if key.partition(".")[0] in _SECTIONS and "." in key]


def _of_recipe(composed: Composed) -> list[str]:
    """Keys that the recipe's file sets itself."""
    recipe = composed.choices.get("recipe")
    file = choices_of("recipe", find_folders()).get(recipe) if recipe else None
    if file is None:
        return []
    sections = {name: value for name, value in read_mapping(file).items() if name in _SECTIONS}
    return list(_flat(sections, ""))


def _of_own_files(composed: Composed) -> list[str]:
    """Keys that the user's ./conf sets: in its build.yaml, and in a choice that has the name of a shipped one."""
    folders = find_folders()
    keys: list[str] = []
    for folder in folders.conf[:-1]:
        main = folder / f"{PRIMARY}.yaml"
        sections = read_mapping(main) if main.is_file() else {}
        keys += _flat({name: value for name, value in sections.items() if name in _SECTIONS}, "")
        for section in _SECTIONS:
            file = Path(section) / f"{composed.choices[section]}.yaml"
            if (folder / file).is_file() and (folders.conf[-1] / file).is_file():
                keys += _flat({section: read_mapping(folder / file)}, "")
    return keys


def _changed(composed: Composed, keys: Collection[str]) -> dict[str, Any]:
    """{key: value} of those keys whose value is not the one that the choices give, in order."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(keys):
        section = key.partition(".")[0]
        value, own = _at(composed.values, key), _at({section: _own_values(section, composed.choices[section])}, key)
        if key == "quant.method" and own == "auto":
            quant = composed.section("quant")
            own = automatic_method(str(quant.get("kind")), quant.get("zero_point"))
            value = own if value == "auto" else value
        if key not in _ELSEWHERE and value != own:
            found[key] = value
    return found


def automatic_method(kind: str, zero_point: object) -> str:
    """What quant.method=auto is for a kind of scheme."""
    return "mse" if kind == "group" and not zero_point else "rtn"


@cache
def _own_values(section: str, choice: str) -> dict[str, Any]:
    """A section as its choice and the defaults have it, the shipped one where there is one of that name. Of a choice
    in a --config-dir the defaults alone."""
    folders = find_folders()
    base = read_mapping(folders.conf[-1] / f"{PRIMARY}.yaml").get(section) or {}
    shipped = folders.conf[-1] / section / f"{choice}.yaml"
    file = shipped if shipped.is_file() else choices_of(section, folders).get(choice)
    return {**base, **(read_mapping(file) if file else {})}


def _flat(values: Mapping[str, Any], above: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{above}{key}"
        flat |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return flat


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
