"""fetch: check a checkpoint's files strictly and name the content of every tensor. Copies no safetensors weights.

Output: layout.json {"tensors": {name: {"dtype", "shape"}}, "copies": [[names of tensors of equal bytes]]}, sorted and
without file names, so that a checkpoint that is only sharded another way changes nothing; tensor/<name>, a slice of the
watched file; file/<name>, config and tokenizer, where file/tokenizer.json is put together from all of the tokenizer's
files; source/<name>, those files as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from codecs import BOM_UTF8
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import local

from llm_build.core.digest import canonical, digest_of_names
from llm_build.core.errors import UserError
from llm_build.core.memo import is_settled, stat_key
from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.formats import checkpoint, safetensors
from llm_build.formats.generation_config import beyond_vocabulary, read_generation_config
from llm_build.formats.tokenizer import assemble, read_files
from llm_build.steps.ports import group

READ_BYTES = 1 << 20
_PROGRESS_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Located:
    """A tensor and where it lies: ``of`` is "watch:<name>" or "output:<name>"."""

    tensor: safetensors.Tensor
    path: Path
    of: str
    file: str  # the checkpoint's own file, for messages and the index


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"format": "safetensors" | "bin", "pin": the digest it must have, or None}; ``inputs``: {"watch":
    {name: File}}, as checkpoint.find lists."""
    watch = group(inputs["watch"])
    located = _locate(params["format"], watch, out)
    owners = _owners(located)
    for name in sorted(watch):
        if name.endswith(".index.json"):
            _note_absent(name, checkpoint.check_index(name, checkpoint.read_index(watch[name].path, name), owners), out)
    _companions(watch, out)
    digests = _hash(located, out)
    checkpoint_digest = digest_of_names(digests)
    if params["pin"] not in (None, checkpoint_digest):
        raise UserError(
            f"pins.checkpoint is {params['pin']}, and this checkpoint is {checkpoint_digest}",
            "give the checkpoint that the recipe pins, or pin this one",
        )
    out.fact("checkpoint", checkpoint_digest)
    layout = {item.tensor.name: {"dtype": item.tensor.dtype, "shape": list(item.tensor.shape)} for item in located}
    out.path("layout.json").write_bytes(canonical({"tensors": layout, "copies": _copies(digests)}))
    out.fact("tensors", len(located))
    out.fact("source_bytes", sum(item.tensor.nbytes for item in located))


def _locate(kind: str, watch: Mapping[str, File], out: Out) -> list[Located]:
    suffix = {"safetensors": ".safetensors", "bin": ".bin"}[kind]
    located: list[Located] = []
    for number, name in enumerate(sorted(name for name in watch if name.endswith(suffix))):
        path, of = watch[name].path, f"watch:{name}"
        if kind == "bin":
            from llm_build.formats import torchbin

            converted = f"converted-{number}.safetensors"
            out.progress(number, len(watch), "files", f"reading {name}")
            path, of = out.path(converted), f"output:{converted}"
            torchbin.to_safetensors(watch[name].path, name, path)
        located += [Located(tensor, path, of, name) for tensor in safetensors.read_header(path, name)]
    return located


def _owners(located: Iterable[Located]) -> dict[str, str]:
    owners: dict[str, str] = {}
    for item in located:
        if item.tensor.name in owners:
            raise UserError(
                f"tensor {item.tensor.name!r} is in both {owners[item.tensor.name]} and {item.file}; allowed: in one",
                "fetch the checkpoint again",
            )
        owners[item.tensor.name] = item.file
    return owners


def _note_absent(index: str, tensors: list[str], out: Out) -> None:
    if tensors:
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        out.warn(f"{index} lists {', '.join(tensors[:3])}{more}, which no file has; the build needs none, or stops")


def _companions(watch: Mapping[str, File], out: Out) -> None:
    paths = {name: file.path for name, file in watch.items() if name in checkpoint.COMPANIONS}
    assembled = checkpoint.has_tokenizer(paths)
    for name in sorted(watch):
        if name.endswith((".safetensors", ".bin", ".index.json")):
            continue
        if name == checkpoint.ADAPTER:
            out.warn(f"{name}: the adapter beside the weights is not applied; merge it into them to build it")
            continue
        if name.endswith(".json"):
            checkpoint.read_json(watch[name].path, name)
        if not (assembled and name == "tokenizer.json"):
            _copy(watch[name].path, out.path(f"file/{name}"))
        if name in checkpoint.TOKENIZER_SOURCES:
            _copy(watch[name].path, out.path(f"source/{name}"))
    generation, config = (_read_json(paths, name) for name in ("generation_config.json", "config.json"))
    if note := beyond_vocabulary(read_generation_config(generation, config), config):
        out.warn(note)
    if assembled:
        data, warnings = assemble(paths)
        out.path("file/tokenizer.json").write_bytes(data)
        for warning in warnings:
            out.warn(warning)
    else:
        read_files(paths)


def _copy(path: Path, target: Path) -> None:
    """Without a byte order mark in JSON, over which transformers and other readers stumble."""
    if path.suffix == ".json":
        with path.open("rb") as file:
            marked = file.read(len(BOM_UTF8)) == BOM_UTF8
        if marked:
            target.write_bytes(path.read_bytes().removeprefix(BOM_UTF8))
            return
    shutil.copyfile(path, target)


def _read_json(paths: Mapping[str, Path], name: str) -> dict[str, Json]:
    return checkpoint.read_json(paths[name], name) if name in paths else {}


def _hash(located: list[Located], out: Out) -> dict[str, str]:
    """blake3 of every tensor, by name. Threads take whole tensors, which keeps cores busier than blake3's own do.

    Files of the checkpoint that are as they were when they were hashed are not read again."""
    files = {item.path: os.stat(item.path) for item in located if item.of.startswith("watch:")}
    settled = {path for path, status in files.items() if is_settled(status)}
    remembered = {path: json.loads(out.memo.get(stat_key(status)) or "{}") for path, status in files.items()}
    fresh = [item for item in located if _extent(item) not in remembered.get(item.path, ())]
    digests = _hash_all(fresh, out)
    for path in settled & {item.path for item in fresh}:
        digests_of_file = {_extent(item): digests[item.tensor.name] for item in fresh if item.path == path}
        if stat_key(os.stat(path)) == stat_key(files[path]):
            out.memo.put(stat_key(files[path]), json.dumps({**remembered[path], **digests_of_file}))
    for item in sorted(located, key=lambda item: item.tensor.name):
        tensor = item.tensor
        digest = digests.get(tensor.name) or remembered[item.path][_extent(item)]
        digests[tensor.name] = digest
        out.slice(f"tensor/{tensor.name}", digest, tensor.nbytes, item.of, tensor.offset)
    return digests


def _copies(digests: Mapping[str, str]) -> list[list[str]]:
    """Groups of tensors of the same bytes, in the order of their names."""
    names: dict[str, list[str]] = {}
    for name in sorted(digests):
        names.setdefault(digests[name], []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _extent(item: Located) -> str:
    return f"{item.tensor.offset}+{item.tensor.nbytes}"


def _hash_all(located: list[Located], out: Out) -> dict[str, str]:
    total = sum(item.tensor.nbytes for item in located)
    largest_first = sorted(located, key=lambda item: -item.tensor.nbytes)
    digests: dict[str, str] = {}
    reader = _Reader({item.path for item in located})
    done = reported = 0
    try:
        with ThreadPoolExecutor(max(1, min(out.threads, 8))) as pool:
            for item, digest in zip(largest_first, pool.map(reader.digest, largest_first), strict=True):
                digests[item.tensor.name] = digest
                done += item.tensor.nbytes
                if done - reported >= _PROGRESS_BYTES or done == total:
                    out.progress(done, total, "B", "hashing")
                    reported = done
    finally:
        reader.close()
    return digests


class _Reader:
    """Open files and one read buffer per thread. Reads, and does not map: a map would count as memory."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.handles = {path: os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths}
        self.threads = local()

    def close(self) -> None:
        for handle in self.handles.values():
            os.close(handle)

    def digest(self, item: Located) -> str:
        from blake3 import blake3

        if not hasattr(self.threads, "buffer"):
            self.threads.buffer = memoryview(bytearray(READ_BYTES))
        buffer, hasher = self.threads.buffer, blake3()
        offset, end = item.tensor.offset, item.tensor.offset + item.tensor.nbytes
        while offset < end:
            count = os.preadv(self.handles[item.path], [buffer[: min(READ_BYTES, end - offset)]], offset)
            if not count:
                raise UserError(f"{item.file}: became shorter while it was read", "run the same build again")
            hasher.update(buffer[:count])
            offset += count
        return f"blake3:{hasher.hexdigest()}"
