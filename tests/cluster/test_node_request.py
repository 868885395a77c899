"""What a node checks before it runs a step, and where it finds things. No Ray, no process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_build.config.paths import store_path
from llm_build.core.errors import UserError
from llm_build.core.filestore import FileStore
from llm_build.core.step import Resources
from llm_build.core.step_io import File
from llm_build.core.task import StepTask
from llm_build.executors.log import Tail, write_log
from llm_build.executors.node import run_request
from llm_build.executors.node_request import PACKAGE, NodeRequest, request_for
from llm_build.remote.location import Location
from llm_build.targets.planned_tools import check_planned_tools


def request(folder: Path, **context: Any) -> NodeRequest:
    """Of a step whose coordinator has its store in ``folder``, which nobody else sees."""
    job = StepTask(
        "m", "lower", "tests.core.toy:misbehave", {"how": "environment"}, {}, context, Resources(), folder / "tmp"
    )
    return request_for(job, FileStore(folder), None, store_path)


def refusal(given: NodeRequest) -> tuple[str, str]:
    done = run_request(given, lambda frame: None)
    assert done["error"]["kind"] == "UserError"
    return done["error"]["message"], done["error"]["hint"]


def test_a_node_with_other_code_refuses(tmp_path):
    message, hint = refusal(request(tmp_path)._replace(code="sha256:other"))
    assert f"the code of llm-build at {PACKAGE} is not that of the machine which plans" in message
    assert hint.startswith("install the same version on every node")


def test_a_node_with_another_tvm_refuses(tmp_path):
    given = request(tmp_path)
    message, hint = refusal(given._replace(tools={**given.tools, "apache-tvm": "0.1"}))
    assert message.endswith(f"apache-tvm is {given.tools['apache-tvm']} here and 0.1 on the machine which plans")
    assert hint == "pip install apache-tvm==0.1"


def test_without_a_shared_store_a_node_must_see_the_coordinators(tmp_path):
    message, hint = refusal(request(tmp_path))
    assert f"does not see the store of the machine which plans ({tmp_path})" in message
    assert hint.startswith("set store.remote=")


def test_a_text_that_differs_on_the_node_is_named(tmp_path):
    text = tmp_path / "text"
    text.write_text("one")
    given = request(tmp_path, text=str(text))
    text.write_text("two!")
    assert f"{text} has another size or time than on the machine which plans" in refusal(given)[0]


def test_an_order_lists_blobs_and_other_files(tmp_path):
    blob = tmp_path / "blobs" / "ab" / "abcd"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"12345")
    outside = tmp_path / "checkpoint"
    outside.write_bytes(b"123")
    inputs = {"x": {"part": File(blob, "blake3:other", 2, 1)}, "watch": {"c": File(outside, "", 3)}}
    job = StepTask("m", "lower", "f:f", {}, inputs, {"text": "no path"}, Resources(), tmp_path / "tmp")
    given = request_for(job, FileStore(tmp_path), Location("file:///x"), store_path)
    assert given.blobs == {"blake3:abcd": 5}
    assert given.outside == {str(outside): (3, outside.stat().st_mtime_ns)}


def test_a_log_arrives_in_pieces_and_begins_anew(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    tail = Tail(there)
    for text in ("first\n", "first\nsecond ü\n", "new\n"):
        there.write_text(text)
        for frame in tail.read():
            write_log(here, frame["log"], frame["at"])
        assert here.read_text() == text
    assert tail.read() == []


def test_a_step_planned_with_another_program_refuses():
    with pytest.raises(UserError, match="planned with the emscripten") as caught:
        check_planned_tools({"emscripten": "9.9.9"})
    assert "container image" in caught.value.hint
    check_planned_tools({"scheme": {}})
