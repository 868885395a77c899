"""Files that commands read: choices and recipes, lock files, built folders with their provenance, caches of a store."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from llm_build.__main__ import run
from llm_build.cli.arguments import parse
from llm_build.core.errors import BuildError
from llm_build.core.names import is_inside
from llm_build.core.small_file import read_small
from llm_build.formats.artifact_config import read_chat_config
from llm_build.formats.tensorcache import read_tensor_cache
from tests.fuzz import samples
from tests.fuzz.damage import put_something_else, spoil_bytes
from tests.fuzz.kinds import Case, Kind
from tests.fuzz.kinds_of_checkpoints import copy, spoil_json
from tests.fuzz.rules import PAYLOAD
from tests.fuzz.values import changed, to_json, to_yaml


def build(*words: str) -> int:
    """`build WORDS` in this process: its exit code. Raises what the command raises."""
    return run(parse(words))


def each(*commands: Callable[[], object]) -> None:
    """All of them, whatever user's errors they end in; then the last of those."""
    last = None
    for command in commands:
        try:
            command()
        except BuildError as error:
            last = error
    if last:
        raise last


# ---------------------------------------------------------------- plans of checkpoints

_SCHEMES = ("q4f16_1", "q0f32", "q8f16_1", "imported")


def prepare_plan(rng: Random, root: Path, case: Case) -> None:
    name = rng.choice(["llama", "sharded", *samples.QUANTIZED])
    folder = copy(root / name, case)
    path = rng.choice(sorted(folder.iterdir()) + [folder / "config.json"] * 4)
    if path.suffix == ".json" and rng.random() < 0.8:
        spoil_json(rng, path)
    else:
        put_something_else(rng, path)


def read_plan(rng: Random, case: Case) -> int:
    return build("plan", "--json", "model=auto", "model.source=c", f"quant={rng.choice(_SCHEMES)}")


# ---------------------------------------------------------------- choices and recipes

_CHOICE = {"name": "q4f16_1", "kind": "group", "bits": 4, "group_size": 32, "layout": "NK", "dtype": "float16",
           "storage_dtype": "uint32", "quantize_embedding": True, "quantize_head": True}  # fmt: skip
_RECIPE = {
    "defaults": [{"override /quant": "own"}, {"override /target": "cpu"}, "_self_"],
    "model": {"source": "demo", "context_window_size": 256}, "quant": {"rules": ["*.down_proj=q8f16_1"]},
    "hydra": {"sweeper": {"params": {"quant": "own,q0f32"}}}, "sweep": {"exclude": []}, "pins": {"checkpoint": None},
}  # fmt: skip
_LINES = [
    f"x: !!python/object/apply:os.system ['{PAYLOAD}']", "hydra: {callbacks: {x: {_target_: os.system}}}",
    "a: &a [*a, *a]", "? {x: 1} : 2", "\tx: 1", "x: *y", "--- \n---", "%YAML 9.9", "store: {path: /tmp/x}", "<<: {}",
    "x: !!binary x",
    "model: {source: hf://a/b}", "name: ../../x", "dist: {path: /tmp/fuzz-dist}", "x: ${oc.env:HOME}",
    "x: ${oc.create:{}}",
    "hydra: {run: {dir: /tmp/fuzz-run}}", "hydra: {searchpath: [pkg://os]}", "x: ${now:%Y}", "verify: off",
    "y: 12:30:45.5",
    "!x y",
    "x: 0x" + "f" * 400, "x: 1_000", "x: .inf", "x: 2024-13-45", "? x", "x: !!timestamp 9999-99-99", "x: !!set {a, b}",
]  # fmt: skip


def prepare_conf(rng: Random, root: Path, case: Case) -> None:
    files = {"conf/quant/own.yaml": _CHOICE, "recipes/own.yaml": _RECIPE}
    for name, value in files.items():
        path = case / name
        path.parent.mkdir(parents=True)
        head = "# @package _global_\n" if name.startswith("recipes") else "# own\n"
        path.write_bytes(head.encode() + to_yaml(rng, value))
    name = rng.choice(list(files))
    path, way = case / name, rng.random()
    if way < 0.08:
        put_something_else(rng, path)
    elif way < 0.3:
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))
    elif way < 0.5:
        lines = path.read_text("utf-8", "replace").split("\n")
        lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_LINES))
        path.write_text("\n".join(lines))
    else:
        head = "# @package _global_\n" if name.startswith("recipes") else "# own\n"
        path.write_bytes(head.encode() + to_yaml(rng, changed(rng, files[name])))
    if rng.random() < 0.05:
        put_something_else(rng, case / "conf" / "build.yaml")


def read_conf(rng: Random, case: Case) -> None:
    command = rng.choice([
        ("plan", "recipe=own"), ("plan", "quant=own"), ("list", "quant"), ("list",), ("--cfg", "job", "recipe=own"),
        ("plan", "-m", "quant=own,q0f32"), ("plan", "recipe=own", "--json"), ("graph", "quant=own"),
    ])  # fmt: skip
    each(lambda: build(*command))


# ---------------------------------------------------------------- lock files


def prepare_lock(rng: Random, root: Path, case: Case) -> None:
    import yaml

    good = (root / "a.lock.yaml").read_bytes()
    (case / "b.lock.yaml").write_bytes(good)
    path, way = case / "a.lock.yaml", rng.random()
    path.write_bytes(good)
    if way < 0.06:
        put_something_else(rng, path)
    elif way < 0.35:
        path.write_bytes(spoil_bytes(rng, good))
    else:
        path.write_bytes(to_yaml(rng, changed(rng, yaml.safe_load(good))))


def read_lock(rng: Random, case: Case) -> None:
    each(
        lambda: build("diff", "a.lock.yaml", "b.lock.yaml", *rng.choice([(), ("--json",)])),
        lambda: build("diff", "b.lock.yaml", "a.lock.yaml"),
    )
    if rng.random() < 0.3:
        _pull(case, samples.root_of(case) / "shared")


def _pull(case: Case, shared: Path) -> None:
    """By the lock of the case, into its folder "out"."""
    each(
        lambda: build("pull", "--locked", "--file", "a.lock.yaml", f"store.remote=file://{shared}", "dist.path=out",
                      "store.path=store", "store.mode=readonly")
    )  # fmt: skip


# ---------------------------------------------------------------- built folders


def prepare_provenance(rng: Random, root: Path, case: Case) -> None:
    for name in ("a", "b"):
        shutil.copytree(root / "dist", case / name)
    path, way = case / "a" / "build.json", rng.random()
    if way < 0.5:
        spoil_json(rng, path)
        return
    document = json.loads(path.read_text())  # what a statement says of recipe and steps, its digests left right
    definition, details = document["predicate"]["buildDefinition"], document["predicate"]["runDetails"]
    part = rng.choice(["recipe", "steps", "tools"])
    if part == "recipe":
        definition["externalParameters"] = changed(rng, definition["externalParameters"])
    elif part == "tools":
        definition["internalParameters"] = changed(rng, definition["internalParameters"])
    else:
        for step in details["byproducts"]:
            step["annotations"] = changed(rng, step["annotations"])
    path.write_bytes(to_json(rng, document))


def prepare_folder(rng: Random, root: Path, case: Case) -> None:
    """Any of its files."""
    for name in ("a", "b"):
        shutil.copytree(root / "dist", case / name)
    shutil.copyfile(root / "a.lock.yaml", case / "a.lock.yaml")
    for path in rng.sample(sorted((case / "a").iterdir()), rng.choice([1, 1, 2])):
        if rng.random() < 0.3:
            put_something_else(rng, path)
        elif path.suffix == ".json" and path.name != "tokenizer.json":
            spoil_json(rng, path)
        else:
            path.write_bytes(spoil_bytes(rng, path.read_bytes()))


def read_folder(rng: Random, case: Case) -> None:
    """Every command that takes a built folder, and what generate, bench and verify read of it."""
    each(
        lambda: build("verify-provenance", "a", *rng.choice([(), ("--against", "b"), ("--json",)])),
        lambda: build("diff", "a", "b", *rng.choice([(), ("--json",)])),
        lambda: build("diff", "b", "a"),
        lambda: build("generate", "a", "Once", *rng.choice([(), ("store.trust=own",)])),
        lambda: read_chat_config(case / "a" / "mlc-chat-config.json"),
        lambda: _read_cache(case / "a" / "tensor-cache.json"),
    )
    if rng.random() < 0.15 and (case / "a.lock.yaml").exists():
        (case / "out").mkdir()
        (case / "a").rename(case / "out" / "tiny")  # a pull puts files where these lie
        _pull(case, samples.root_of(case) / "shared")


def _read_cache(path: Path) -> None:
    if path.is_file() and path.stat().st_size < 1 << 20:
        for name in read_tensor_cache(path.read_bytes()):
            is_inside(name)


def prepare_pull(rng: Random, root: Path, case: Case) -> None:
    """A shared store with something wrong, a good lock file."""
    shutil.copyfile(root / "a.lock.yaml", case / "a.lock.yaml")
    shutil.copytree(root / "shared", case / "shared")
    files = sorted(path for path in (case / "shared").rglob("*") if path.is_file())
    records = [path for path in files if path.parent.parent.name == "records"]
    path = rng.choice(records * len(files) + files)
    spoil_record(rng, path) if path in records else put_or_spoil(rng, path)


def spoil_record(rng: Random, path: Path) -> None:
    """A manifest: its content under a true digest and seal, or its bytes."""
    from llm_build.core.digest import sha256_hex
    from llm_build.core.seals import Seals

    try:
        content = json.loads(read_small(path, 1 << 20).partition(b"\n")[0])
    except (OSError, ValueError, RecursionError):  # it was spoiled before
        content = None
    if content is None or rng.random() < 0.25:
        put_or_spoil(rng, path)
        return
    body = to_json(rng, changed(rng, content)).replace(b"\n", b"")
    seal = Seals().line(body) if rng.random() < 0.9 else b""
    path.chmod(0o644)
    path.write_bytes(body + b'\n"sha256:' + sha256_hex(body).encode() + b'"\n' + seal)


def put_or_spoil(rng: Random, path: Path) -> None:
    if rng.random() < 0.5 or not path.is_file() or path.stat().st_size > 1 << 20:
        put_something_else(rng, path)
    else:
        path.chmod(0o644)
        path.write_bytes(spoil_bytes(rng, read_small(path, 1 << 20)))


def read_pull(rng: Random, case: Case) -> None:
    _pull(case, case / "shared")


# ---------------------------------------------------------------- what a store remembers


def prepare_caches(rng: Random, root: Path, case: Case) -> None:
    shutil.copytree(root / "planned", case / "store")
    files = sorted(path for path in (case / "store").rglob("*") if path.is_file())
    for path in rng.sample(files, rng.choice([1, 1, 2])):
        if path.suffix == ".json" and rng.random() < 0.7:
            spoil_json(rng, path)
        else:
            put_or_spoil(rng, path)
    if rng.random() < 0.1:
        put_something_else(rng, case / "keys" / "seal")


def read_caches(rng: Random, case: Case) -> None:
    before = os.environ["LLM_BUILD_STORE"]
    os.environ["LLM_BUILD_STORE"] = str(case / "store")
    try:
        each(lambda: build("plan", "--json", *samples.PLANNED))
    finally:
        os.environ["LLM_BUILD_STORE"] = before


KINDS = [
    Kind("plan", prepare_plan, read_plan, 4),
    Kind("conf", prepare_conf, read_conf, 4),
    Kind("lock", prepare_lock, read_lock, 18),
    Kind("provenance", prepare_provenance, read_folder, 18),
    Kind("folder", prepare_folder, read_folder, 18),
    Kind("pull", prepare_pull, read_pull, 6),
    Kind("caches", prepare_caches, read_caches, 4),
]
