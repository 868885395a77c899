"""Where results are kept on a machine when a recipe does not say."""

from __future__ import annotations

import os
from pathlib import Path


def store_path(configured: str | None = None) -> Path:
    """The store: what the recipe says, else $LLM_BUILD_STORE, else the user's cache folder."""
    chosen = configured or os.environ.get("LLM_BUILD_STORE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return Path(user_cache_path("llm-build")) / "store"
