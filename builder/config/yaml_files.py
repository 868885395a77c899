"""Files of configuration as text and as data: what cannot be read ends here, with the file's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_build.core.errors import UserError


def read_text(path: Path) -> str:
    """The text of a choice or a recipe, without a byte order mark. Raises UserError unless it is UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 text: {error.reason} at byte {error.start}; allowed: UTF-8",
            "save the file as UTF-8 (editors write other encodings, such as UTF-16 or Latin-1, where they are told to)",
        ) from error


def invalid_yaml(path: Path | str, error: Exception) -> UserError:
    """The error for a file that a YAML reader refused."""
    return UserError(f"{path}: is not valid YAML: {' '.join(str(error).split())[:300]}")


def read_mapping(path: Path) -> dict[str, Any]:
    """A choice's file as plain data. Raises UserError for what is no mapping in YAML."""
    import yaml

    try:
        value = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise invalid_yaml(path, error) from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; allowed: a mapping of keys and values")
    return value
