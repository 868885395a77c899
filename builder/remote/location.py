"""Where a shared store is and how it is reached: an fsspec URL, its options, what may be done there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from llm_build.core.errors import UserError
from llm_build.core.step_io import Json

URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_FROM_ENVIRONMENT = "env:"
_SECRETS = re.compile(r"secret|password|passphrase|account_key|sas_token|connection_string|credential|access_token")


class Location(NamedTuple):
    """``timeout_s``: without a byte for so long, the store counts as away. ``transfers``: at once, each way."""

    url: str
    mode: str = "write"  # or "readonly"
    options: Mapping[str, Json] = {}
    transfers: int = 8
    timeout_s: float = 30.0

    @property
    def protocol(self) -> str:
        return self.url.partition("://")[0]


def check_location(location: Location) -> None:
    """Raises UserError for a URL without a protocol, and for secrets: they would end up in files and in histories."""
    if not URL.match(location.url):
        raise UserError(
            f"store.remote={location.url}: expected a URL that fsspec knows, such as s3://bucket/folder, gs://bucket, "
            "az://container, sftp://host/folder or file:///folder",
            f"build store.remote=file://{os.path.abspath(location.url)}, if it is a folder",
        )
    if re.match(r"[^/]*//[^/@]*:[^/@]*@", location.url):
        raise UserError(
            "store.remote: found a password in the URL; allowed: none",
            "build store.remote_options.password=env:NAME, with the password in the environment variable NAME",
        )
    for path, value in _texts(location.options, "store.remote_options"):
        if _SECRETS.search(path.lower()) and not value.startswith(_FROM_ENVIRONMENT):
            raise UserError(
                f"{path}: found a secret in clear; allowed: env:NAME, for the environment variable NAME",
                f"build {path}=env:NAME, or leave it out and let the store's own client find its credentials",
            )


def _texts(value: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, each in value.items():
            yield from _texts(each, f"{path}.{name}")
    elif isinstance(value, str):
        yield path, value


def with_environment(value: Json, path: str = "store.remote_options") -> Json:
    """Options with every "env:NAME" replaced. UserError when the variable is not set."""
    if isinstance(value, Mapping):
        return {name: with_environment(each, f"{path}.{name}") for name, each in value.items()}
    if isinstance(value, str) and value.startswith(_FROM_ENVIRONMENT):
        name = value.removeprefix(_FROM_ENVIRONMENT)
        if name not in os.environ:
            raise UserError(f"{path} is {value}, and there is no environment variable {name}", f"export {name}=...")
        return os.environ[name]
    return value
