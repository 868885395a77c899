"""model.source -> a checkpoint on this disk, found and named. Reads config.json and the index, never the weights."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import llm_build
from llm_build.config.choices import hub_source
from llm_build.config.schema import Checkpoint
from llm_build.core.errors import UserError
from llm_build.core.json_text import NotJson, parse_json
from llm_build.core.names import is_plain
from llm_build.core.small_file import read_small
from llm_build.formats import checkpoint as layout

_DEMO = Path(llm_build.__file__).resolve().parent / "demo"
HF = re.compile(r"^hf://(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
_SMALL = ("*.json", "*.jinja", "*.model", "merges.txt")
_WEIGHTS = ("*.safetensors", "*.bin")


def locate(source: str | None, choice: str) -> Checkpoint:
    """Finds a checkpoint. Small files of an hf:// source are downloaded when this disk has none of them yet.

    Raises UserError when there is none, or what is there cannot be a checkpoint.
    """
    if source is None:
        raise UserError(
            f"model={choice} has no checkpoint: model.source is not set",
            f"build model={choice} model.source=/path/to/checkpoint   (or hf://org/name, or model=demo)",
        )
    if source == "demo":
        return checkpoint_at("demo", "demo", _DEMO)
    if source.startswith("hf://"):
        return _locate_hf(source)
    if "://" in source:
        raise UserError(
            f"model.source={source}: this kind of address is not known; allowed: a folder, hf://org/name@revision, demo"
        )
    if hub := hub_source(source):
        raise UserError(
            f"model.source={source}: no such folder; a repository of the hub begins with hf://",
            f"build model={choice} model.source={hub}",
        )
    return checkpoint_at("folder", "", Path(source).expanduser().absolute())


def checkpoint_at(kind: str, uri: str, root: Path, missing: tuple[str, ...] = ()) -> Checkpoint:
    if not root.is_dir():
        raise layout.without_folder(root)
    config = _read_config(root)
    inside = layout.find(root)
    return Checkpoint(kind, uri, root, inside.format, (*inside.weights, *inside.files), config, missing)


def _read_config(root: Path) -> dict[str, Any]:
    """config.json as a dict. Raises UserError when it is missing or is not a JSON object."""
    path = root / "config.json"
    try:
        config = parse_json(read_small(path, layout.most_bytes(path.name)))
    except FileNotFoundError:
        raise layout.without_config(root) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except NotJson as error:
        layout.refuse_pointer(path, path.name)
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(config).__name__}")
    return config


def _locate_hf(source: str) -> Checkpoint:
    """The snapshot of a hub repository in the local hub cache, pinned to its commit.

    The cache layout (refs/<revision> holds a commit, snapshots/<commit> the files) is documented at
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache. A branch that is here already is not asked for
    again: `build` must give the same result tomorrow.
    """
    match = HF.match(source)
    if match is None:
        raise UserError(f"model.source={source}: expected hf://org/name or hf://org/name@revision")
    repo, revision = match["repo"], match["revision"] or "main"
    folder = _hub_cache() / f"models--{repo.replace('/', '--')}"
    commit = _known_commit(folder, revision)
    if commit is None or not (folder / "snapshots" / commit / "config.json").is_file():
        commit = download(repo, revision, _SMALL)
    root, uri = folder / "snapshots" / commit, f"hf://{repo}@{commit}"
    missing = _missing_weights(root)
    if not missing:
        return checkpoint_at("hf", uri, root)
    config = _read_config(root)
    suffix = ".bin" if missing[0].endswith(".bin") else ".safetensors"
    return Checkpoint("hf", uri, root, suffix[1:], missing, config, missing)


def _hub_cache() -> Path:
    """As huggingface_hub decides it, without importing it."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


def _known_commit(folder: Path, revision: str) -> str | None:
    if _COMMIT.match(revision):
        return revision
    ref = folder / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def _missing_weights(root: Path) -> tuple[str, ...]:
    """Weight files that the snapshot names or needs and does not hold yet."""
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (root / single).exists():
            return ()
        if (root / index).is_file():
            try:
                files = set(parse_json(read_small(root / index, layout.most_bytes(index)))["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError, TypeError):
                return ()  # checkpoint_at() reads it strictly and says what is wrong
            return tuple(name for name in sorted(filter(is_plain, files)) if not (root / name).exists())
    return ("model.safetensors",)


def download(repo: str, revision: str, patterns: tuple[str, ...]) -> str:
    """Downloads the files that match and returns the commit. Raises UserError when the hub is out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    where = "give a folder instead: model.source=/path/to/checkpoint"
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns))).name
    except RepositoryNotFoundError as error:
        raise UserError(f"hf://{repo}@{revision}: no such repository, or it needs a login (HF_TOKEN)", where) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"hf://{repo}@{revision} is not on this disk and the hub cannot be reached: {reason}",
            f"{where}   (offline: hf download {repo} on a machine with a network, then copy the folder)",
        ) from error


def download_missing(checkpoint: Checkpoint) -> Checkpoint:
    """Downloads what is missing of an hf:// checkpoint; others are complete already."""
    if not checkpoint.missing:
        return checkpoint
    repo, _, commit = checkpoint.uri.removeprefix("hf://").partition("@")
    patterns = _WEIGHTS[:1] if checkpoint.format == "safetensors" else _WEIGHTS
    download(repo, commit, patterns)
    if checkpoint.format == "safetensors" and _missing_weights(checkpoint.root):
        download(repo, commit, _WEIGHTS[1:])  # no index names its files: a single pickle, then
    return checkpoint_at("hf", checkpoint.uri, checkpoint.root)
