"""Files that are larger than they look, or no files at all: each is refused at once, by name."""

from __future__ import annotations

import json
import os
import pickle
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from llm_build.cli.failures import without_trace
from llm_build.config.yaml_files import read_mapping
from llm_build.core.errors import UserError
from llm_build.core.small_file import read_small
from llm_build.formats import safetensors, torchbin
from llm_build.formats.chat_template import read_text
from llm_build.formats.checkpoint import COMPANIONS, read_json
from llm_build.formats.tokenizer import encode
from llm_build.planner import sources
from llm_build.provenance import lock_file
from tests.weights.tokenizers_of_kinds import byte_level
from tests.weights.weights_line import hf_config, source_tensors, write_checkpoint

NINES = "9" * 4300


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 10  # a second on a machine with nothing else to do


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    assert len(caught.value.message) < 5000
    return caught.value.message


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


NO_FILES = {
    pipe: "a pipe",
    device: "a device",
    loop: "symbolic links",
    terabyte: "bytes; allowed",
    Path.mkdir: "folder",
}


@pytest.mark.parametrize("kind", NO_FILES, ids=lambda kind: kind.__name__)
def test_what_is_no_small_file_is_not_read(kind: Callable[[Path], None], tmp_path: Path):
    kind(tmp_path / "x")
    with pytest.raises(OSError, match=NO_FILES[kind]):
        read_small(tmp_path / "x", 1 << 20)
    for read in (read_text, read_mapping, lock_file.read, lambda path: read_json(path, "config.json")):
        assert "cannot be read" in refusal(lambda read=read: read(tmp_path / "x"))


@pytest.mark.parametrize("kind", NO_FILES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", [*COMPANIONS, "model.safetensors", "model.safetensors.index.json"])
def test_nor_is_it_taken_for_a_part_of_a_checkpoint(name: str, kind: Callable[[Path], None], tmp_path: Path):
    write_checkpoint(tmp_path / "c", source_tensors())
    if name.endswith("index.json"):
        (tmp_path / "c" / "model.safetensors").unlink()
    (tmp_path / "c" / name).unlink(missing_ok=True)
    kind(tmp_path / "c" / name)
    if (name, kind) == ("model.safetensors", terabyte):
        assert name in refusal(lambda: safetensors.read_header(tmp_path / "c" / name, name))
    else:
        assert name in refusal(lambda: sources.checkpoint_at("folder", "", tmp_path / "c"))


def entry(dtype: str = "U8", shape: str = "0", offsets: str = "0,0") -> str:
    return f'{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}'


def header(*entries: tuple[str, str], data: bytes = b"") -> bytes:
    text = ("{" + ",".join(f'"{name}":{content}' for name, content in entries) + "}").encode()
    return len(text).to_bytes(8, "little") + text + data


HEADERS = {
    "a negative offset": header(("a", entry("F32", "1", "-4,0"))),
    "offsets beyond 64 bits": header(("a", entry("F32", "1", f"{NINES},{NINES}"))),
    "an overlap": header(("a", entry("U8", "2", "0,2")), ("b", entry("U8", "1", "1,2")), data=b"ab"),
    "an axis of 4300 digits": header(("a", entry("F32", NINES, "0,4"))),
    "a product without end": header(("a", entry("F32", ",".join(["9" * 18] * 100_000), "0,4"))),
    "a long name twice": header(("x" * 10**6, entry()), ("x" * 10**6, entry())),
    "40,000 tensors and one name twice": header(*((f"t{index}", entry()) for index in (*range(40_000), 7))),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(HEADERS[name])
    assert "x.safetensors" in refusal(lambda: safetensors.read_header(tmp_path / "x.safetensors", "x.safetensors"))


LISTS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
MAPPINGS = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{b: *a{i - 1}, c: *a{i - 1}}}\n" for i in range(1, 60))
YAML = {
    "a billion laughs": (LISTS, "aliases"),
    "laughs in mappings": (MAPPINGS, "aliases"),
    "a number of many digits": ("model: {max_batch_size: " + "9" * 10**6 + "}\n", "digits"),
    "a number in base 60": ("model: {max_batch_size: 1" + ":59" * 10**5 + "}\n", "digits"),
    "a hexadecimal number": ("model: {max_batch_size: 0x" + "f" * 10**5 + "}\n", "digits"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml(name: str, tmp_path: Path):
    text, message = YAML[name]
    (tmp_path / "x.yaml").write_text(text)
    assert message in refusal(lambda: read_mapping(tmp_path / "x.yaml"))
    assert message in refusal(lambda: lock_file.read(tmp_path / "x.yaml"))


def test_aliases_of_ordinary_use_are_read(tmp_path: Path):
    (tmp_path / "x.yaml").write_text("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a}\n")
    assert read_mapping(tmp_path / "x.yaml")["d"] == {"b": [1, 2]}


def test_config_json_of_any_length_is_not_read(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**hf_config(), "x": "y" * (5 << 20)}))
    assert "config.json" in refusal(lambda: read_json(tmp_path / "config.json", "config.json"))


def test_a_large_tokenizer_is_read_under_any_name(tmp_path: Path):
    """In the store files have no names of their own."""
    (tmp_path / "blob").write_text(json.dumps({"x": "y" * (5 << 20)}))
    assert read_json(tmp_path / "blob", "tokenizer.json")


PATTERNS = {  # each tries ways without end on ordinary words
    "the library gives up": (r"(\w+\s?)+#", "others " * 40 + "!", "cannot cut a text"),
    "the library does not": (r"\w*\w*\w*#", "word" * 60, "allowed: up to"),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_that_has_no_end_is_refused(name: str, monkeypatch: pytest.MonkeyPatch):
    pattern, words, message = PATTERNS[name]
    monkeypatch.setenv("RUST_BACKTRACE", "0")
    slow = byte_level()
    slow.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    assert message in refusal(lambda: encode(slow, words + " # " + "follow " * 400))
    assert encode(byte_level(), "a b" * 10_000, special=False)


def test_tracebacks_are_for_debug_alone():
    log = "\n".join(f"    line {number}" for number in range(100))
    panic = "\n    thread '<unnamed>' panicked at x\n    stack backtrace:\n      0: a"
    assert without_trace("ValueError: x\n    Traceback (most):\n      File y") == (
        "ValueError: x",
        True,
    )
    assert without_trace("Panic: x" + panic) == ("Panic: x", True)
    shown, cut = without_trace(f"x\n{log}")
    assert not cut
    assert len(shown.splitlines()) == 15
    assert shown.endswith("line 99")


def test_a_terabyte_that_is_not_on_the_disk_is_not_hashed(tmp_path: Path):
    path, length = tmp_path / "x.safetensors", 1 << 40
    path.write_bytes(header(("a", entry("U8", str(length), f"0,{length}"))))
    os.truncate(path, path.stat().st_size + length)
    assert "are on the disk" in refusal(lambda: safetensors.read_header(path, path.name))


@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_that_asks_for_gigabytes_is_not_unpickled(archive: bool, tmp_path: Path):
    class Buffer:
        def __reduce__(self) -> tuple[object, ...]:
            return bytearray, (1 << 40,)

    path, data = tmp_path / "x.bin", pickle.dumps({"a": Buffer()}, protocol=2)
    path.write_bytes(data)
    if archive:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", data)
            file.writestr("archive/version", "3\n")
    assert "bytearray" in refusal(lambda: torchbin.to_safetensors(path, path.name, tmp_path / "out"))
