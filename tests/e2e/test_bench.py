"""`build bench` on the demo: measured once on this machine, then kept."""

from __future__ import annotations

from tests.conftest import Shell, bytes_of


def test_measured_once_and_kept(demo: Shell):
    before = bytes_of(demo.folder / "dist" / "demo-q4f16_1-cpu")
    found = demo.json("bench")["recipes"][0]
    assert found["status"] == "fresh"
    assert [step["status"] for step in found["steps"] if step["name"] == "bench"] == ["ran"]
    measured = found["bench"]
    assert not measured["kept"]
    assert measured["machine"]["cores"] >= 1
    assert [row["context"] for row in measured["decode"]] == [8, 512, 960]
    assert measured["prefill"]["tokens_per_s"]["median"] > measured["decode"][0]["tokens_per_s"]["median"]
    assert 0 < measured["load_s"] < measured["first_token"]["cold_s"]

    again = demo.json("bench")["recipes"][0]["bench"]
    assert again == {**measured, "kept": True}
    anew = demo.json("bench", "--again")["recipes"][0]
    assert "result missing" in anew["steps"][-1]["reason"]
    assert not anew["bench"]["kept"]
    assert anew["bench"]["decode"] != measured["decode"]
    assert bytes_of(demo.folder / "dist" / "demo-q4f16_1-cpu") == before
    assert "bench" not in demo.statuses("plan")
    assert "bench: fresh (up to date)" in demo.run("why", "bench").stdout


def test_a_cell_that_cannot_run_here(demo: Shell):
    said = demo.run("bench", "target.cpu=arm64", code=2)
    assert "bench measures on this machine, which cannot run a library for arm64" in said.stderr
    said = demo.run("generate", "a prompt", "target.cpu=arm64", code=2)
    assert "generate runs the library on this machine, which cannot run a library for arm64" in said.stderr
    found = demo.json("bench", "-m", "target.cpu=host,arm64", code=2)["recipes"]
    assert ["bench" in row for row in found] == [True, False]
    assert found[1]["status"] == "unsupported"
