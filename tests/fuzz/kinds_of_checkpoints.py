"""Files of a checkpoint, read as fetch, convert, package and verify read them."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from llm_build import architectures
from llm_build.config.schema import Quant
from llm_build.core.errors import BuildError
from llm_build.core.small_file import read_small
from llm_build.core.step_io import File
from llm_build.formats import checkpoint as layout
from llm_build.formats import quantized, torchbin
from llm_build.formats.artifact_config import read_chat_config
from llm_build.formats.chat_template import read_template
from llm_build.formats.generation_config import beyond_vocabulary, read_generation_config
from llm_build.formats.tokenizer import assemble, encode, load, read_files
from llm_build.planner import sources
from llm_build.planner.schemes import imported
from llm_build.steps import convert, package
from tests.fuzz import samples
from tests.fuzz.damage import put_something_else, spoil_bytes
from tests.fuzz.kinds import Case, Kind
from tests.fuzz.rules import PAYLOAD
from tests.fuzz.values import any_value, changed, to_json
from tests.weights.weights_line import ARCHITECTURE, METADATA, FolderOut, group_scheme, run_fetch


def spoil_json(rng: Random, path: Path) -> None:
    """By its structure, by its bytes, or by what is no file."""
    way, data = rng.random(), read_small(path, 1 << 20) if path.stat().st_size < 1 << 20 else b""
    try:
        value = json.loads(data.partition(b'\n"sha256:')[0])
    except (ValueError, RecursionError):  # it was spoiled before
        value, way = None, way / 4
    if way < 0.06:
        put_something_else(rng, path)
    elif way < 0.25:
        path.write_bytes(spoil_bytes(rng, data))
    else:
        path.write_bytes(to_json(rng, changed(rng, value)))


def copy(source: Path, case: Case, names: Sequence[str] | None = None) -> Path:
    """A sample's folder, or some of its files, as "c" of the case."""
    folder = case / "c"
    if names is None:
        shutil.copytree(source, folder)
        return folder
    folder.mkdir()
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return folder


# ---------------------------------------------------------------- weights


def prepare_safetensors(rng: Random, root: Path, case: Case) -> None:
    folder = copy(root / "llama", case, ("config.json", "model.safetensors"))
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    way = rng.random()
    if way < 0.06:
        put_something_else(rng, path)
        return
    header = data[8 : 8 + length]
    if way < 0.3:
        header = spoil_bytes(rng, header)
    elif way < 0.9:
        header = to_json(rng, _near_header(rng, json.loads(header)))
    data = len(header).to_bytes(8, "little") + header + data[8 + length :]
    path.write_bytes(spoil_bytes(rng, data) if way > 0.85 else data)


def _near_header(rng: Random, header: dict[str, Any]) -> dict[str, Any]:
    """Half of the times of few tensors, so that a change is in a place that is read."""
    names = list(header)
    if rng.random() < 0.3:
        name = rng.choice(names)
        header[
            rng.choice([name * 40, "../" + name, name + "\0", "x" * 256, "x" * 300, "a/" * 2000 + "b", "é" * 130])
        ] = header.pop(name)
        return header
    return changed(rng, header)  # type: ignore[no-any-return]


def read_weights(rng: Random, case: Case) -> None:
    """fetch, and the weight map."""
    fetched = run_fetch(case / "c", case / "w")
    config = layout.read_json(case / "c" / "config.json", "config.json")
    family = architectures.recognise(config)
    described = architectures.load(family)
    architecture = described.from_hf({key: value for key, value in config.items() if key != "quantization_config"})
    packing = quantized.describe(config)
    params: dict[str, Any] = {"family": family, "architecture": asdict(architecture)}
    if packing:
        params["packing"] = asdict(packing)
    convert.run(params, {"layout": fetched.outputs()["layout.json"]}, FolderOut(case / "w" / "convert"))


def prepare_index(rng: Random, root: Path, case: Case) -> None:
    folder = copy(root / "sharded", case)
    index = folder / "model.safetensors.index.json"
    spoil_json(rng, index) if rng.random() < 0.8 else put_something_else(rng, rng.choice(sorted(folder.iterdir())))


def prepare_bin(rng: Random, root: Path, case: Case) -> None:
    name = rng.choice(["pytorch_model.bin", "old.bin"])
    folder = copy(root / "bin", case, ("config.json", name))
    (folder / name).rename(folder / "pytorch_model.bin")
    path, way = folder / "pytorch_model.bin", rng.random()
    if way < 0.06:
        put_something_else(rng, path)
    elif way < 0.3:
        path.write_bytes(_hostile_pickle(rng))
    elif way < 0.6 and name == "pytorch_model.bin":
        _spoil_member(rng, path)
    else:
        path.write_bytes(spoil_bytes(rng, path.read_bytes()))


def _hostile_pickle(rng: Random) -> bytes:
    """What runs a command where it is unpickled, bare or in torch's archive."""
    import io
    import pickle
    import zipfile

    class Hostile:
        def __reduce__(self) -> Any:
            import os

            return rng.choice([(os.system, (PAYLOAD,)), (eval, ("1",)), (exec, ("x=1",)), (bytearray, (1 << 40,)),
                               (__import__, ("os",))])  # fmt: skip

    value: Any = rng.choice([Hostile(), {"a": Hostile()}, [Hostile()], {"a": 1}, any_value(rng), {"a": any_value(rng)}])
    data = pickle.dumps(value, protocol=rng.choice([2, 3, 4]))
    if rng.random() < 0.4:
        return spoil_bytes(rng, data)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        archive.writestr(rng.choice(["archive/data/0", "../../../x", "/tmp/x"]), bytes(rng.choice([0, 64, 1 << 20])))
    return out.getvalue()


def _spoil_member(rng: Random, path: Path) -> None:
    """The pickle inside the archive."""
    import zipfile

    with zipfile.ZipFile(path) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = (
        next(name for name in members if name.endswith("data.pkl")) if rng.random() < 0.8 else rng.choice(list(members))
    )
    members[name] = spoil_bytes(rng, members[name])
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)


def read_bin(rng: Random, case: Case) -> None:
    found = layout.find(case / "c")
    torchbin.to_safetensors(case / "c" / found.weights[0], found.weights[0], case / "out.safetensors")


# ---------------------------------------------------------------- config.json


def prepare_config(rng: Random, root: Path, case: Case) -> None:
    folder = copy(root / "llama", case, ("model.safetensors",))
    family = rng.choice(sorted(samples.FAMILIES))
    config = {"model_type": family, **samples.FAMILIES[family]}
    (folder / "config.json").write_text(json.dumps(config))
    if rng.random() < 0.3:
        for key in rng.sample(_FOREIGN, rng.choice([1, 2])):
            config[key] = any_value(rng)
        (folder / "config.json").write_bytes(to_json(rng, config))
    else:
        spoil_json(rng, folder / "config.json")


_FOREIGN = [
    "rope_scaling", "rope_parameters", "layer_types", "sliding_window", "text_config", "architectures", "auto_map",
    "quantization_config", "compression_config", "quantization", "head_dim", "num_key_value_heads", "no_rope_layers",
    "vision_config", "torch_dtype", "dtype", "max_position_embeddings", "original_max_position_embeddings",
]  # fmt: skip


def read_config(rng: Random, case: Case) -> None:
    """Up to the table of parameters."""
    found = sources.checkpoint_at("folder", "", case / "c")
    for quant in (Quant(name="imported", method="imported"), Quant(name="q0f16")):
        with contextlib.suppress(BuildError):
            imported.check(quant, found)
    plain = imported.without_quantization(found)
    described = architectures.load(architectures.recognise(dict(plain.config)))
    described.parameters(described.from_hf(dict(plain.config)))


def prepare_quantized(rng: Random, root: Path, case: Case) -> None:
    folder = copy(root / rng.choice(samples.QUANTIZED), case)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = changed(rng, config["quantization_config"])
    (folder / "config.json").write_bytes(to_json(rng, config))
    if rng.random() < 0.1:
        for name in rng.sample(["quantize_config.json", "adapter_config.json", "hf_quant_config.json"], 1):
            (folder / name).write_bytes(to_json(rng, changed(rng, config["quantization_config"])))


# ---------------------------------------------------------------- tokenizer, generation, templates


def prepare_tokenizer(rng: Random, root: Path, case: Case) -> None:
    folder = copy(
        root / "llama", case, [name for name in layout.COMPANIONS if name not in ("tokenizer.model", *_WORDS)]
    )
    if rng.random() < 0.3:
        shutil.copyfile(root / "bin" / "tokenizer.json", folder / "tokenizer.json")
    if rng.random() < 0.3:
        (folder / "chat_template.jinja").unlink()
    names = ["tokenizer.json"] * 3 + ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
                                      "generation_config.json"]  # fmt: skip
    for name in dict.fromkeys(rng.sample(names, rng.choice([1, 1, 2]))):
        if (folder / name).is_file() and not (folder / name).is_symlink():
            if name == "tokenizer.json" and rng.random() < 0.5:
                _spoil_small(rng, folder / name)
            else:
                spoil_json(rng, folder / name)


_WORDS = ("vocab.json", "merges.txt")


def _spoil_small(rng: Random, path: Path) -> None:
    """All but the vocabulary, of which a tokenizer.json nearly is."""
    whole = json.loads(path.read_bytes())
    vocab = whole["model"].pop("vocab")
    whole["model"]["vocab"] = {}
    whole = changed(rng, whole)
    if isinstance(whole, dict) and isinstance(whole.get("model"), dict) and whole["model"].get("vocab") == {}:
        whole["model"]["vocab"] = vocab
    path.write_bytes(to_json(rng, whole))


def read_tokenizer(rng: Random, case: Case) -> None:
    """As fetch, package and verify do, but for the process that renders templates."""
    paths = _companions(case / "c")
    for name in paths:
        if name.endswith(".json"):
            layout.read_json(paths[name], name)
    generation, config = (layout.read_json(paths[name], name) if name in paths else {} for name in _CONFIGS)
    beyond_vocabulary(read_generation_config(generation, config), config)
    files = read_files(paths)
    read_template(files, paths.get("chat_template.jinja"))
    if "tokenizer.json" not in paths:
        return
    data, _ = assemble(paths)
    (case / "assembled.json").write_bytes(data)
    tokenizer = load(case / "assembled.json")
    encode(tokenizer, "a small house </s> ☃ <x>" * 30)
    encode(tokenizer, "words and words. " * 1000)


_CONFIGS = ("generation_config.json", "config.json")


def _companions(folder: Path) -> dict[str, Path]:
    found = layout.find(folder) if (folder / "model.safetensors").exists() else None
    names = found.files if found else [name for name in layout.COMPANIONS if (folder / name).is_file()]
    return {name: folder / name for name in names}


def prepare_vocabulary(rng: Random, root: Path, case: Case) -> None:
    names = ["vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "config.json"]
    folder = copy(root / "llama", case, names)
    for name in rng.sample(names[:4], rng.choice([1, 1, 2])):
        if name == "merges.txt":
            (folder / name).write_bytes(spoil_bytes(rng, (folder / name).read_bytes()))
        else:
            spoil_json(rng, folder / name)


def read_vocabulary(rng: Random, case: Case) -> None:
    paths = _companions(case / "c")
    if not layout.has_tokenizer(paths):
        read_files(paths)
        return
    data, _ = assemble(paths)
    (case / "assembled.json").write_bytes(data)
    encode(load(case / "assembled.json"), "a small house")


def prepare_generation(rng: Random, root: Path, case: Case) -> None:
    folder = copy(root / "llama", case, ("config.json", "generation_config.json", "model.safetensors"))
    spoil_json(rng, folder / rng.choice(["generation_config.json", "generation_config.json", "config.json"]))


def read_packaged(rng: Random, case: Case) -> None:
    """fetch and package, with weights of a sample."""
    fetched = run_fetch(case / "c", case / "w")
    root = samples.root_of(case)
    shards = {f"0/{path.name}": _file(path) for path in sorted((root / "work" / "quantize-0").iterdir())}
    inputs = {
        "shards": shards, "library": _file(root / "work" / "library.so"), "files": fetched.outputs("file/"),
        "parameters": _file(root / "work" / "shard" / "parameters.json"),
    }  # fmt: skip
    params = {
        "name": "tiny", "library": "tiny.so", "family": "llama", "architecture": ARCHITECTURE,
        "scheme": asdict(group_scheme("q4f16_1")), "quantization": "q4f16_1", "method": "rtn", "metadata": METADATA,
        "conv_template": None,
    }  # fmt: skip
    packaged = FolderOut(case / "w" / "package")
    package.run(params, inputs, packaged)
    read_chat_config(packaged.folder / "mlc-chat-config.json")


def _file(path: Path) -> File:
    return File(path, "", path.stat().st_size)


def prepare_template(rng: Random, root: Path, case: Case) -> None:
    """A template, as text in tokenizer_config.json."""
    folder = copy(root / "llama", case, [*_TOKENIZER, "config.json", "model.safetensors"])
    text = rng.choice(samples.TEMPLATES)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        text = rng.choice([
            text[:at] + rng.choice(_JINJA) + text[at:], text[:at] + text[at + rng.choice([1, 5, 40]) :],
            text[:at] + text[rng.randrange(len(text) + 1) :],
        ])  # fmt: skip
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = text if rng.random() < 0.9 else [{"name": "default", "template": text}, any_value(rng)]
    (folder / "tokenizer_config.json").write_bytes(to_json(rng, config))


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_JINJA = [
    "{% for i in range(10**10) %}x{% endfor %}", "{{ 'x' * 10**10 }}", "{{ [0] * 10**9 }}", "{{ 9 ** 9 ** 9 }}",
    "{{ ''.__class__.__mro__ }}", f"{{{{ cycler.__init__.__globals__.os.popen('{PAYLOAD}').read() }}}}",
    "{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{{ messages.append(1) }}", "{{ 1/0 }}", "{% macro m() %}"
    "{{ m() }}{% endmacro %}{{ m() }}", "{% set x = x %}", "{{ tools | tojson }}",
    "{{ messages | tojson(indent=10**9) }}", "{% raw %}", "{%", "%}", "{#", "{{ '%1000000000s' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}", "\ud800", "\0",
    "{{ x.y.z }}",
    "{{ lipsum(10**6) }}", "{{ range(10**9) | list }}", "{{ 'a' | center(10**10) }}", "{% break %}",
    "(" * 300, "[" * 3000,
    "{{ namespace(a=1).__class__ }}", "{{ raise_exception(messages) }}", "{{ strftime_now('%Y' * 10**6) }}",
    "{{ bos_token * 3 }}",
]  # fmt: skip


KINDS = [
    Kind("safetensors", prepare_safetensors, read_weights, 36),
    Kind("index", prepare_index, read_weights, 24),
    Kind("bin", prepare_bin, read_bin, 24),
    Kind("config", prepare_config, read_config, 36),
    Kind("quantized", prepare_quantized, read_weights, 24),
    Kind("tokenizer", prepare_tokenizer, read_tokenizer, 30),
    Kind("generation", prepare_generation, read_packaged, 18),
    Kind("template", prepare_template, read_packaged, 2),
    Kind("vocabulary", prepare_vocabulary, read_vocabulary, 1),
]
