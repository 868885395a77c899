"""Lock files as text, where they are, and what is said of two that differ."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llm_build.core.errors import UserError
from llm_build.provenance import lock_file as lockfile
from llm_build.provenance.diff import folders
from llm_build.provenance.diff.locks import differences_between, format_lock_difference
from llm_build.provenance.diff.report import format_comparison
from llm_build.provenance.lock_file import Cell, Lock
from tests.conftest import Shell

CELL = Cell(
    artifact="package",
    choices={"model": "llama", "quant": "q4f16_1", "recipe": "phone"},
    settings={"target.features": "avx2, avx512f", "quant.damping": 1e-5, "verify.enabled": True, "quant.name": "1e5"},
    checkpoint={"source": "folder", "digest": "sha256:" + "1" * 64, "file config.json": "blake3:" + "2" * 64},
    inputs={"lower.linker": "ld:1"},
    code={"lower": "sha256:a", "quantize": "sha256:b"},
    steps={"lower": "k1", "quantize[*]": "k2"},
    outputs={"m.so": "blake3:" + "3" * 64, "p.bin": "blake3:" + "4" * 64},
    nbytes={"m.so": 100, "p.bin": 2000},
    quality={"kl": 0.01236},
)
LOCK = Lock("phone", {"apache-tvm": "0.27.0"}, {"phone": CELL})
HUB = {"source": "hf://org/name@" + "a" * 40, "asked": "hf://org/name@main"}


def differences(last: Lock, now: Lock, modules=lambda code: None, common: bool = False) -> list[str]:
    return [format_lock_difference(each) for each in differences_between(last, now, modules, common)]


def cells(*, tools=LOCK.tools, **changed) -> Lock:
    return Lock("phone", tools, {"phone": replace(CELL, **changed)})


def test_a_lock_reads_back_as_it_was_written_and_is_sorted_one_fact_a_line(tmp_path: Path):
    text = lockfile.text_of(LOCK, "build lock recipe=phone")
    assert lockfile.write(tmp_path / "recipes" / "phone.lock.yaml", text)
    assert lockfile.read(tmp_path / "recipes" / "phone.lock.yaml") == LOCK
    assert not lockfile.write(tmp_path / "recipes" / "phone.lock.yaml", text)
    shuffled = replace(LOCK, cells={"phone": replace(CELL, settings=dict(reversed(CELL.settings.items())))})
    assert lockfile.text_of(shuffled, "build lock recipe=phone") == text
    facts = sum(len(each) for each in (*CELL.__reduce_ex__(2)[2], LOCK.tools) if isinstance(each, dict))
    headings, others = 2 + 1 + 9, 3  # cells, tools; phone; its sections of facts - artifact, lock, recipe
    assert len(text.splitlines()) == 1 + facts + headings + others


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- 1\n", "is no lock file"),
        ("lock: 1\nrecipe: x\n", "is no lock file .KeyError: 'tools'"),
        ("lock: 2\n", "a lock of format 2; this llm-build reads 1"),
        ("lock: 1\nrecipe: null\ntools: {}\ncells: {a: {steps: 5}}\n", "steps is int, not a mapping"),
        ("lock: 1\nrecipe: null\ntools: {}\ncells: {a: {stops: {}}}\n", "stops"),
        ("lock: 1\nrecipe: null\ntools: {}\ncells: {}\nextra: 1\n", "unknown: extra"),
        ("a: [\n", "is no lock file .ParserError"),
    ],
)
def test_what_is_no_lock_is_refused_with_the_reason(tmp_path: Path, content: str, said: str):
    (tmp_path / "x.lock.yaml").write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        lockfile.read(tmp_path / "x.lock.yaml")
    assert "build lock" in caught.value.hint


def test_where_locks_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lockfile, "shipped", lambda name: tmp_path / "wheel" / name)
    phone = ["recipe=phone", "quant=q0f16"]
    assert lockfile.destination(phone, ["x"], None) == tmp_path / "recipes" / "phone.lock.yaml"
    assert lockfile.destination(["quant=q0f16"], ["demo-q0f16-cpu"], None) == tmp_path / "demo-q0f16-cpu.lock.yaml"
    assert lockfile.destination(phone, ["x"], "a/b.lock.yaml") == tmp_path / "a" / "b.lock.yaml"
    with pytest.raises(UserError, match="a lock of 2 builds needs a name") as caught:
        lockfile.destination([], ["a", "b"], None)
    assert "--file" in caught.value.hint
    assert lockfile.find_lock_file(phone, "x", None) is None
    for folder in ("wheel/recipes", "recipes"):  # the user's own before the shipped one
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "phone.lock.yaml").touch()
        assert lockfile.find_lock_file(phone, "x", None) == tmp_path / folder / "phone.lock.yaml"
    assert lockfile.find_lock_file(phone, "x", "other.lock.yaml") is None


def test_a_lock_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: File exists"):
        lockfile.write(tmp_path / "file" / "x.lock.yaml", "")


def test_nothing_moved_where_nothing_did():
    assert differences(LOCK, LOCK) == []
    assert differences(LOCK, cells(quality={"kl": 2.0})) == []
    assert differences(LOCK, cells(steps={}, outputs={}, nbytes={})) == []  # not known yet


def test_what_moved_is_said_in_words():
    assert differences(LOCK, cells(tools={"apache-tvm": "0.28.0", "numpy": "2"})) == [
        "apache-tvm 0.27.0 → 0.28.0", "numpy added (2)"
    ]  # fmt: skip
    settings = {**CELL.settings, "target.features": "avx2, amx", "verify.enabled": False}
    assert differences(LOCK, cells(choices={**CELL.choices, "quant": "q0f16"}, settings=settings)) == [
        "quant q4f16_1 → q0f16", "target.features -avx512f +amx", "verify.enabled true → false"
    ]  # fmt: skip
    assert differences(LOCK, cells(inputs={"lower.linker": "ld:2"})) == ["lower.linker ld:1 → ld:2"]
    outputs = {"m.so": CELL.outputs["m.so"], "p.bin": "blake3:" + "5" * 64, "q.bin": "blake3:" + "6" * 64}
    assert differences(LOCK, cells(outputs=outputs, nbytes={"m.so": 100, "p.bin": 3000, "q.bin": 1})) == [
        "p.bin blake3:444444444444… → blake3:555555555555…, 2.0 kB → 3.0 kB", "q.bin added (blake3:666666666666…)"
    ]  # fmt: skip


def test_what_follows_from_rules_that_are_not_picked_yet_is_not_compared():
    rules = {**CELL.settings, "quant.rules.0.scheme": "q8f16_1"}
    now = cells(artifact="", inputs={}, tools={"numpy": "2"})
    assert differences(Lock("phone", LOCK.tools, {"phone": replace(CELL, settings=rules)}), now) == []
    assert differences(LOCK, cells(settings=rules)) == ["quant.rules.0.scheme added (q8f16_1)"]
    assert differences(LOCK, cells(artifact="", tools={"apache-tvm": "2"})) == ["apache-tvm 0.27.0 → 2"]


def test_code_is_named_by_module_where_it_is_known():
    now = cells(code={"lower": "sha256:c", "quantize": "sha256:d"})
    tables = {
        "sha256:a": {"x.py": "1", "y.py": "1"}, "sha256:c": {"x.py": "2"},
        "sha256:b": {"x.py": "1"}, "sha256:d": {"x.py": "2", "z.py": "1"},
    }  # fmt: skip
    assert differences(LOCK, now, tables.get) == [
        "x.py changed (code of lower, quantize)", "y.py removed (code of lower)", "z.py added (code of quantize)"
    ]  # fmt: skip
    assert differences(LOCK, now) == ["code of lower changed", "code of quantize changed"]


def test_settings_have_the_names_that_a_user_types():
    before = {"model.family": "auto", "metadata.context_window_size": 1024, "architecture.vocab_size": 99}
    after = {"model.context_window_size": 512, "model.family": "auto", "metadata.context_window_size": 512}
    last, now = cells(settings=before), cells(settings={**after, "architecture.vocab_size": 98})
    assert differences(last, now) == ["model.vocab_size 99 → 98", "model.context_window_size 1024 → 512"]
    asked_for = cells(settings={**before, "model.context_window_size": 1024})
    assert differences(last, asked_for) == ["model.context_window_size added (1024)"]


def test_a_key_is_told_only_where_nothing_explains_it():
    steps = {"lower": "k1", "quantize[*]": "k3"}
    assert differences(LOCK, cells(steps=steps)) == ["quantize[*] is made from other inputs"]
    assert differences(LOCK, cells(steps=steps, inputs={"lower.linker": "ld:2"})) == ["lower.linker ld:1 → ld:2"]


def test_a_checkpoint_is_its_content_and_before_it_is_read_its_revision():
    content = {k: v for k, v in CELL.checkpoint.items() if k != "source"}
    assert differences(LOCK, cells(checkpoint={**content, **HUB})) == []
    other = {**content, "digest": "sha256:" + "9" * 64, "source": "demo"}
    assert differences(LOCK, cells(checkpoint=other)) == [
        "checkpoint digest sha256:111111111111… → sha256:999999999999…", "checkpoint source folder → demo"
    ]  # fmt: skip
    hub = cells(checkpoint={**content, **HUB})
    unread = {**HUB, "source": "hf://org/name@" + "b" * 40}
    assert differences(hub, cells(checkpoint=HUB)) == []
    assert differences(hub, cells(checkpoint=unread)) == [f"checkpoint source {HUB['source']} → {unread['source']}"]
    assert differences(hub, cells(checkpoint={**HUB, "asked": "hf://org/name@v2"})) == [
        "checkpoint asked hf://org/name@main → hf://org/name@v2"
    ]
    assert differences(hub, cells(checkpoint={**HUB, "asked": HUB["source"]})) == []  # the very revision, named


def test_cells_that_share_a_difference_are_told_together():
    old = Lock("n", {}, dict.fromkeys("abcde", CELL))
    new = replace(CELL, choices={**CELL.choices, "quant": "q0f16"})
    assert differences(old, Lock("n", {}, {name: new if name < "e" else CELL for name in "abcde"})) == [
        "a, b, c and 1 more: quant q4f16_1 → q0f16"
    ]
    assert differences(old, Lock("n", {}, dict.fromkeys("abcde", new))) == ["quant q4f16_1 → q0f16"]
    assert differences(old, Lock("n", {}, dict.fromkeys("abcdf", CELL))) == ["e removed", "f added"]
    assert differences(old, Lock("n", {}, dict.fromkeys("ab", CELL)), common=True) == []
    assert differences(LOCK, Lock("phone", LOCK.tools, {"tablet": CELL})) == ["name phone → tablet"]


def index(**tensors: tuple[list[int], str, int, str, int]) -> dict[str, object]:
    records = [
        {"dataPath": shard, "records": [{"name": n, "shape": s, "dtype": d, "nbytes": b, "byteOffset": o}]}
        for n, (s, d, b, shard, o) in tensors.items()
    ]
    return {"records": records}


def folder(path: Path, content: dict[str, object], **shards: bytes) -> Path:
    import json

    path.mkdir()
    (path / folders.INDEX).write_text(json.dumps(content))
    for name, data in shards.items():
        (path / name).write_bytes(data)
    return path


def test_tensors_of_two_folders(tmp_path: Path):
    big = bytes(folders.READ_BYTES + 7)
    old = index(
        a=([2], "f16", 4, "s0", 0),
        b=([4], "f16", 8, "s0", 4),
        c=([9], "u8", len(big), "s1", 0),
        d=([1], "u8", 1, "s0", 0),
    )
    new = index(
        a=([2], "f16", 4, "s0", 8),
        b=([2, 2], "f16", 8, "s0", 0),
        c=([9], "u8", len(big), "s1", 0),
        e=([1], "u8", 1, "s0", 0),
    )
    left = folder(tmp_path / "l", old, s0=b"aaaabbbbbbbb", s1=big)
    right = folder(tmp_path / "r", new, s0=b"bbbbbbbbaaaa", s1=big[:-1] + b"\1")
    found = folders.compare(left, right, {})
    assert found == folders.Tensors(
        added={"e": "u8[1]"}, removed={"d": "u8[1]"}, reshaped={"b": ("f16[4]", "f16[2, 2]")},
        changed=("c",), shards=("s1",), same=1,
    )  # fmt: skip
    assert folders.compare(left, right, {"s1": True}).changed == ()  # an equal file is not read
    (right / "s1").write_bytes(big[:-1])
    with pytest.raises(folders.StepError, match="s1: ends before its tensors do"):
        folders.compare(left, right, {})
    (right / "s1").unlink()
    with pytest.raises(folders.StepError, match="s1: cannot be read"):
        folders.compare(left, right, {})
    (right / folders.INDEX).write_text("{}")
    with pytest.raises(UserError, match="no index of tensors: KeyError: 'records'"):
        folders.compare(left, right, {})


def test_a_comparison_reads_as_text():
    tensors = {
        "added": {"e": "u8[1]"}, "removed": {"d": "u8[1]"}, "reshaped": {"b": ["f16[4]", "f16[2, 2]"]},
        "changed": [f"t{i}" for i in range(30)], "shards": ["s1"], "same": 2,
    }  # fmt: skip
    cell = {
        "steps": [{"step": "lower", "last": "0" * 64, "now": "sha256:" + "1" * 64, "why": ""},
                  {"step": "shard", "last": "0", "now": "1", "why": "scheme.bits 4 → 3"}],
        "tensors": tensors, "bytes": {"all": [4000, 3000]}, "quality": {"kl": [0.0124, 0.1]},
        "bench": {"decode at 8": [100.0, 150.0]},
    }  # fmt: skip
    rows = [{"cells": ["a"], "what": "tools.x", "last": "1", "now": "2", "text": "x 1 → 2"}]
    sides = {"a": {"name": "p", "kind": "lock"}, "b": {"name": "q", "kind": "recipe"}}
    text = list(format_comparison({"same": False, **sides, "differences": rows, "cells": {"demo": cell}}))
    assert text[:6] == [
        "p (lock) → q (recipe)", "tools", "  a: x 1 → 2", "steps", "  lower: key 000000000000 → 111111111111",
        "  shard: scheme.bits 4 → 3",
    ]  # fmt: skip
    assert text[6:11] == [
        "tensors", "  e u8[1] added", "  d u8[1] removed", "  b f16[4] → f16[2, 2]",
        "  30 of 32 with other bytes, in s1:",
    ]  # fmt: skip
    assert text[-7:] == [
        "  and 14 more (--json shows all)", "size", "  4.0 kB → 3.0 kB (-25.0%)", "quality", "  kl 0.0124 → 0.1",
        "tokens/s", "  decode at 8: 100 → 150 (+50%)",
    ]  # fmt: skip
    assert list(format_comparison({"same": True, **sides, "differences": [], "cells": {}})) == [
        "p (lock) → q (recipe): no difference"
    ]


def test_what_the_terminal_cannot_write_is_escaped(shell: Shell):
    """Names of a file of others, on a terminal that has ASCII alone."""
    locks = [replace(LOCK, tools={"näme": version}) for version in ("1", "ü2")]
    cell = replace(CELL, steps={"package": "ab" * 32})
    for name, lock in zip("ab", locks, strict=True):
        (shell.folder / f"{name}.lock.yaml").write_text(
            lockfile.text_of(replace(lock, cells={"phone": cell}), "x"), "utf-8"
        )
    script = "from llm_build.__main__ import main; raise SystemExit(main(['diff', 'a.lock.yaml', 'b.lock.yaml']))"
    environment = {**shell.environment(), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shell.folder, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "n\\xe4me 1 \\u2192 \\xfc2" in done.stdout
