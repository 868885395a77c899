"""A user's own conf/build.yaml lies over the shipped one, whatever it holds."""

from __future__ import annotations

import pytest

from llm_build.__main__ import main
from llm_build.config.choices import shipped
from llm_build.config.compose import compose
from llm_build.core.errors import UserError
from tests.planning.test_sweeping import swept


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    (tmp_path / "conf").mkdir()
    return tmp_path


def own(folder, text: str) -> None:
    (folder / "conf" / "build.yaml").write_text(text)


@pytest.mark.parametrize(
    ("text", "quant", "batch", "name"),
    [
        ("", "q4f16_1", 4, None),
        ("model: {max_batch_size: 2}", "q4f16_1", 2, None),
        ("defaults: [quant: q8f16_1]", "q8f16_1", 4, None),
        ("defaults:\n  - override /quant: q8f16_1\n  - _self_\nname: mine", "q8f16_1", 4, "mine"),
        ("defaults:\n  - verify: off\nmodel: {max_batch_size: 3}", "q4f16_1", 3, None),
        ((shipped("conf") / "build.yaml").read_text("utf-8"), "q4f16_1", 4, None),
    ],
)
def test_it_says_only_what_is_different(folder, text, quant, batch, name):
    own(folder, text)
    found = compose([], None)
    assert (found.choices["quant"], found.values["model"]["max_batch_size"], found.values["name"]) == (
        quant, batch, name
    )  # fmt: skip
    assert compose(["quant=q0f32", "model.max_batch_size=1"], None).choices["quant"] == "q0f32"
    assert {job.values["model"]["max_batch_size"] for job in swept("-m", "quant=q4f16_1,q8f16_1")} == {batch}


@pytest.mark.parametrize(
    "text",
    ["[1]", "text", "1", "a: [", "model: null", "model: 3", "nothing: 3", "store: null", "defaults: 3", "defaults: [3]",
     "defaults: [{quant: null}]", "defaults: [{quant: nothing}]", "defaults: [nowhere]", "defaults: {quant: q8f16_1}"],
)  # fmt: skip
def test_what_it_cannot_be_is_a_users_error(folder, text, capsys):
    own(folder, text)
    assert main(["plan"]) == 2, text
    assert "a defect" not in capsys.readouterr().err


@pytest.mark.parametrize("group", ["model", "quant", "target", "package", "verify", "executor"])
@pytest.mark.parametrize("word", ["~{}", "{}=null", "{}=[]", "{}=[a,b]"])
def test_a_build_without_a_choice_of_a_group_is_refused_by_its_name(group, word):
    with pytest.raises(UserError, match=f"^{group}"):
        compose([word.format(group)], None)
