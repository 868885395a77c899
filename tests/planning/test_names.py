"""Default names tell apart what differs in bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_build.app.merge import with_distinct_names
from llm_build.config.choices import Composed
from llm_build.config.compose import compose
from llm_build.planner import names

PLAIN = "demo-q4f16_1-cpu"


def name(*words: str) -> str:
    return names.name_of(compose(list(words), None))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], PLAIN),
        (["quant.method=rtn"], f"{PLAIN}-method=rtn"),
        (["quant.method=rtn", "quant=e4m3_f16"], "demo-e4m3_f16-cpu"),
        (["quant.method=mse", "quant.group_size=32", "verify=off", "dist.path=x", "executor=local"], PLAIN),
        (["model.allow_nonfinite=true", "pins.checkpoint=blake3:0", "verify.tokens=300"], PLAIN),
        (["quant.method=gptq"], f"{PLAIN}-method=gptq"),
        (["quant.budget=4.25"], f"{PLAIN}-budget=4.25"),
        (["quant.group_size=33", "quant.method=gptq"], f"{PLAIN}-group_size=33,method=gptq"),
        (["model.context_window_size=64"], f"{PLAIN}-context_window_size=64"),
        (["model=llama2_7b", "target=webgpu"], "llama2_7b-q4f16_1-webgpu"),
        (["quant.calibration.text=/x/my text.txt"], f"{PLAIN}-text=my_text.txt-80df6c"),
        (["quant.calibration.text=text.txt"], f"{PLAIN}-text=text.txt"),
        (["model=auto", "model.source=/data/Qwen3-0.6B/"], "Qwen3-0.6B-q4f16_1-cpu"),
        (["model=auto", "model.source=hf://Qwen/Qwen3-8B@main"], "Qwen3-8B-q4f16_1-cpu"),
        (["model=auto", "model.source=demo", "quant=q0f16"], "demo-q0f16-cpu"),
        (["recipe=demo", "quant.method=awq"], f"{PLAIN}-method=awq"),
        (["name=mine", "quant.method=awq"], "mine"),
    ],
)
def test_default_names(words: list[str], expected: str):
    assert name(*words) == expected


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("conf/quant/q4f16_1.yaml", "name: q4f16_1\nkind: group\nbits: 4\ngroup_size: 64\n", "-group_size=64"),
        ("conf/build.yaml", "quant: {method: rtn}\n", "-method=rtn"),
        ("conf/build.yaml", "quant: {method: mse}\n", ""),
        ("conf/quant/mine.yaml", "name: mine\nkind: group\nbits: 4\ngroup_size: 64\n", ""),
    ],
)
def test_the_users_own_files_show_in_the_name(
    file: str, text: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    assert name() == PLAIN + expected


def test_every_key_that_is_typed_gives_a_name_of_its_own_that_a_folder_can_have():
    typed = [
        "bits=3",
        "group_size=64",
        "layout=KN",
        "budget=5",
        "method=awq",
        "damping=0.5",
        "candidates=[q4f16_1,q8f16_1]",
    ]
    found = [name(f"quant.{word}") for word in typed]
    assert len({PLAIN, *found}) == len(typed) + 1
    assert all(names.name_of(compose([f"name='{one}'"], None)) == one for one in found)
    many = name(*[f"quant.{word}" for word in typed], "quant.calibration.text=" + "long" * 30)
    assert len(many) < 60


def test_values_that_are_cut_alike_are_told_apart():
    """Of a path the name holds the last part alone, of a list no brackets."""
    alike = [
        ["/x/t.txt", "/y/t.txt", "t.txt", "/x/t.txt/", "../t.txt"],
        ["a b.txt", "a_b.txt", "a__b.txt", "_a_b.txt", "'a#b.txt'"],
    ]
    for texts in alike:
        found = {name(f"quant.calibration.text={text}") for text in texts}
        assert len(found) == len(texts), found
    lists = {
        name(f"quant.candidates={text}") for text in ("[q4f16_1,q8f16_1]", "[q4f16_1_,q8f16_1]", "q4f16_1_q8f16_1")
    }
    assert len(lists) == 3, lists


def test_what_all_cells_of_a_sweep_share_is_in_their_names():
    jobs = [compose([f"quant={quant}", "quant.method=awq", "verify=off"], None) for quant in ("q4f16_1", "q8f16_1")]
    assert [names.name_of(job) for job in with_distinct_names(jobs)] == [
        "demo-q4f16_1-cpu-method=awq", "demo-q8f16_1-cpu-method=awq",
    ]  # fmt: skip


def test_the_scheme_is_named_as_it_is():
    def label(*words: str) -> str:
        return names.scheme_label(compose(list(words), None))

    assert label("quant.method=gptq", "quant.max_shard_bytes=65536") == "q4f16_1"
    assert label("quant.group_size=33") == "q4f16_1-group_size=33"
    assert label("quant.budget=4.25", "quant.sensitivity_tokens=64") == "q4f16_1-budget=4.25"


def test_what_is_no_section_is_an_empty_one_until_the_parser_refuses_it():
    composed = Composed({"store": [1], "quant": {"bits": 4}}, {}, ())
    assert composed.section("store") == composed.section("sweep") == {}
    assert composed.section("quant") == {"bits": 4}
