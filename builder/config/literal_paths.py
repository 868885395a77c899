"""Paths in overrides, as Hydra's grammar takes them literally."""

from __future__ import annotations

import re

# Keys whose values are paths, and what such a value holds that Hydra's grammar reads only in quotes
_KEYS = r"model\.source|dist\.path|store\.(?:path|remote)|(?:quant\.calibration|verify)\.text|provenance\.key"
_PATHS = re.compile(rf"^[+]{{0,2}}(?:{_KEYS})=(?P<value>.+)$", re.DOTALL)
_ODD = re.compile(r"[^\w/\-\\+.$%*@?|:, ]", re.ASCII)
_GRAMMAR = re.compile(r"""^\s*(?:["'\[{]|(?:choice|range|interval|glob|shuffle|sort|tag|str|extend_list)\()|\$\{""")


def is_path_key(key: str) -> bool:
    return re.fullmatch(_KEYS, key) is not None


def quote(value: str) -> str:
    """A value as Hydra's grammar takes it literally."""
    return "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", value)) + "'"


def take_path_literally(text: str) -> str:
    """A path that the grammar cannot read (=, #, brackets, quotes, accents) is meant as it is; each of several in a
    sweep. What means something there, a list or a range, stays."""
    match = _PATHS.match(text)
    if match is None or not _ODD.search(match["value"]) or _GRAMMAR.search(match["value"]):
        return text
    parts = re.split(r"(?<!\\),", match["value"])
    quoted = ",".join(quote(part.replace("\\,", ",")) if _ODD.search(part) else part for part in parts)
    return text[: match.start("value")] + quoted
