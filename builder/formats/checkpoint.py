"""A Hugging Face checkpoint folder: which of its files make it up. Reads names and the index, never weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_build.core.errors import UserError
from llm_build.core.fields import show
from llm_build.core.json_text import NotJson, parse_json
from llm_build.core.names import is_plain
from llm_build.core.small_file import kind_of, read_small

_WEIGHTS: tuple[tuple[str, str], ...] = (  # first found wins, in transformers' order
    ("model.safetensors", "safetensors"),
    ("model.safetensors.index.json", "safetensors"),
    ("pytorch_model.bin", "bin"),
    ("pytorch_model.bin.index.json", "bin"),
)
COMPANIONS = (  # small files that travel into the artifact or fill it in
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
TOKENIZER_FILES = (  # what runtimes read to tokenize, in the artifact's order
    "tokenizer.model",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer_config.json",
)
TOKENIZER_SOURCES = (  # what transformers makes a tokenizer of
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


MOST_BYTES = {  # several times the largest published ones (tokenizer.json: 35 MB); others are small
    "tokenizer.json": 128 << 20,
    "vocab.json": 64 << 20,
    "merges.txt": 64 << 20,
    "tokenizer.model": 64 << 20,
    "tokenizer_config.json": 32 << 20,
    "added_tokens.json": 32 << 20,
    "model.safetensors.index.json": 64 << 20,
    "pytorch_model.bin.index.json": 64 << 20,
}
SMALL_BYTES = 4 << 20
ADAPTER = "adapter_config.json"  # of peft: weights that are added to those of a model
BPE_FILES = ("vocab.json", "merges.txt")  # a tokenizer of before there was tokenizer.json


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Names relative to the folder. ``weights`` holds the index file too, where there is one."""

    format: str  # safetensors | bin
    weights: tuple[str, ...]
    files: tuple[str, ...]


def find(folder: Path) -> Checkpoint:
    """What a build watches in this folder.

    Raises:
        UserError: no such folder, no config.json, no weights, or an index that is not JSON, names files outside the
            folder or files that are not there.
    """
    if not folder.is_dir():
        raise UserError(
            f"model.source: {folder} is not a folder; allowed: a folder with config.json and weights",
            "build model.source=/path/to/checkpoint",
        )
    if not (folder / "config.json").is_file():
        raise without_config(folder)
    files = tuple(name for name in (*COMPANIONS, ADAPTER) if _is_companion(folder / name, name))
    for name, kind in _WEIGHTS:
        if (folder / name).is_file():
            members = _members(folder, name)
            for each in (*members, *files):
                refuse_pointer(folder / each, each)
            return Checkpoint(kind, members, files)
    for name, _ in _WEIGHTS:
        _refuse_dangling(folder / name, name)
    raise _without_weights(folder)


def without_config(folder: Path) -> UserError:
    """The error for a folder that has no config.json."""
    _refuse_dangling(folder / "config.json", "config.json")
    if (folder / ADAPTER).is_file():
        base = read_json(folder / ADAPTER, ADAPTER).get("base_model_name_or_path")
        return UserError(
            f"{folder} has no config.json, but {ADAPTER}: it is an adapter{f' of {base}' if base else ''}, not a model",
            "merge it into its model (peft's PeftModel.merge_and_unload(), then save_pretrained()), and build that",
        )
    if any(folder.glob("*.gguf")):
        return UserError(f"{folder} has no config.json, but GGUF files, {_GGUF}", _NOT_GGUF)
    return UserError(
        f"{folder} has no config.json: not a Hugging Face checkpoint",
        "model.source must be a transformers checkpoint folder, with config.json and weights",
    )


def without_folder(path: Path) -> UserError:
    """The error for a source that is no folder."""
    if not path.exists():
        return UserError(
            f"model.source={path}: no such folder", "model.source=/path/to/checkpoint, the folder with config.json"
        )
    if path.suffix == ".gguf":
        return UserError(f"model.source={path}: is a GGUF file, {_GGUF}", _NOT_GGUF)
    return UserError(
        f"model.source={path}: is a file, not a folder; a checkpoint is the folder with config.json and weights",
        f"model.source={path.parent}",
    )


def _without_weights(folder: Path) -> UserError:
    suffixes = (".safetensors", ".bin", ".pt", ".gguf", ".npz")
    others = sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)
    is_gguf = any(name.endswith(".gguf") for name in others)
    return UserError(
        f"{folder} has no weights; found: {', '.join(others) or 'none'}; "
        f"allowed: {', '.join(name for name, _ in _WEIGHTS)}" + (f". GGUF is {_GGUF}" if is_gguf else ""),
        _NOT_GGUF if is_gguf else "is the download complete?",
    )


_GGUF = "llama.cpp's own format, which is not read here"
_NOT_GGUF = "take the checkpoint that they were converted from: config.json and safetensors files"
_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # at most, says the specification


def refuse_pointer(path: Path, name: str) -> None:
    """UserError for what git leaves in place of a large file that git-lfs has not brought yet.

    https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
    try:
        if path.stat().st_size > _POINTER_BYTES:
            return
        with path.open("rb") as file:
            is_pointer = file.read(len(_POINTER)) == _POINTER
    except OSError:
        return  # whoever reads the file says so
    if is_pointer:
        raise UserError(
            f"{name}: is a git-lfs pointer, not the file that it stands for", f"cd {path.parent}; git lfs pull"
        )


def _is_companion(path: Path, name: str) -> bool:
    """Whether a small file is there. UserError for what stands in its place, and for a file of another kind's size."""
    if not path.is_file():
        _refuse_dangling(path, name)
        return False
    if (nbytes := path.stat().st_size) > most_bytes(name):
        raise UserError(f"{name}: cannot be read: it has {nbytes} bytes; allowed: up to {most_bytes(name)}")
    return True


def most_bytes(name: str) -> int:
    """How large a small file of a checkpoint may be."""
    return MOST_BYTES.get(name, SMALL_BYTES)


def _refuse_dangling(path: Path, name: str) -> None:
    """UserError for a link to nothing, and for a pipe, a device or a folder in the place of a file."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is {kind_of(path.stat())}; {name} must be a file")
    if path.is_symlink() and not path.exists():
        raise UserError(
            f"{name}: is a link to {path.readlink()}, where nothing is",
            "copy the folder with what its links lead to (cp -rL, rsync -L), or fetch the checkpoint again",
        )


def has_tokenizer(files: Collection[str]) -> bool:
    """Whether fetch makes a tokenizer.json from these files of a checkpoint."""
    return "tokenizer.json" in files or set(BPE_FILES) <= set(files)


def _members(folder: Path, name: str) -> tuple[str, ...]:
    if not name.endswith(".index.json"):
        return (name,)
    shards = sorted(set(read_index(folder / name, name).values()))
    for shard in shards:
        if not (folder / shard).is_file():
            _refuse_dangling(folder / shard, shard)
            raise UserError(f"{name} names {shard}, which is not in {folder}", "is the download complete?")
    return (name, *shards)


def read_index(path: Path, name: str) -> dict[str, str]:
    """The index's {tensor: file}; ``name`` is what messages call the index. Files must be plain names."""
    index = read_json(path, name)
    table = index.get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError(f"{name}: weight_map is {show(table)}; allowed: an object of tensor names and file names")
    for tensor, file in table.items():
        if not is_plain(file):
            raise UserError(
                f"{name}: tensor {show(tensor)} is said to be in {show(file)}, outside the folder; "
                "allowed: a plain file name",
                "do not build this checkpoint unless you trust where it came from",
            )
    return table


def read_json(path: Path, name: str) -> dict[str, Any]:
    """A JSON object from a file of the checkpoint, with or without a byte order mark; ``name`` is what the checkpoint
    calls it, which may lie elsewhere under another."""
    try:
        value = parse_json(read_small(path, most_bytes(Path(name).name)))
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}", f"look at {path}") from error
    except NotJson as error:
        refuse_pointer(path, name)
        raise UserError(f"{name}: is not JSON: {error}", "the file is damaged: fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{name}: is a JSON {type(value).__name__}; allowed: an object")
    return value


def check_index(name: str, index: Mapping[str, str], owners: Mapping[str, str]) -> list[str]:
    """Hold an index against what the files hold: ``index`` and ``owners`` are {tensor: file}.

    Returns:
        Tensors that the index lists and no file has, sorted. Scripts that drop a shared tensor from its file leave it
        in the index; a tensor that the model needs is missed when its weight map is made.
    """
    for tensor, file in sorted(index.items()):
        if owners.get(tensor, file) != file:
            raise UserError(f"{name}: tensor {tensor!r} is said to be in {file}; it is in {owners[tensor]}", _AGAIN)
    absent = sorted(set(index) - set(owners))
    for tensor, file in sorted(owners.items()):
        if tensor not in index:
            also = f"; it lists {absent[0]!r}, which no file has" if absent else ""
            raise UserError(f"{name}: {file} holds tensor {tensor!r}, which the index does not list{also}", _AGAIN)
    return absent


_AGAIN = "the index and the files are not of one checkpoint: fetch them again"
