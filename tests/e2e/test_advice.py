"""A build whose scheme lost much says what loses less."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Shell

LOST = ("quant=q3f16_1", "quant.method=rtn", "verify.tokens=256")  # KL 0.08 on the demo


def test_a_build_that_lost_much_says_what_loses_less(demo: Shell):
    dist = f"dist.path={demo.folder / 'advice'}"
    told = demo.run(*LOST, dist).stdout
    assert "demo-q3f16_1-cpu-method=rtn lost much; less is lost with (expected from a story teller of 260K):" in told
    assert "\n  quant.method=gptq  KL 0.0" in told
    assert told.rstrip().endswith(f"next: build quant=q3f16_1 verify.tokens=256 {dist} quant.method=gptq")
    assert "lost much" not in demo.run(*LOST, dist).stdout, "nothing ran"
    card = (demo.folder / "advice" / "demo-q3f16_1-cpu-method=rtn" / "README.md").read_text()
    assert "Where `kl` is above\n0.05, less is lost with" in card
    assert "- `quant.method=mse`: the same bytes, 0.5 of the loss" in card


def test_results_of_this_model_go_before_what_others_lost(demo: Shell, tmp_path: Path):
    mse = demo.json("quant=q3f16_1", "verify.tokens=256", f"dist.path={tmp_path}")["recipes"][0]
    assert "advice" not in mse, "KL 0.04 is not much"
    kl = next(step["facts"]["kl"] for step in mse["steps"] if step["validation"])
    first = demo.json(*LOST, f"dist.path={tmp_path}", "name=again")["recipes"][0]["advice"][0]
    assert (first["change"], first["measured"], first["kl_least"]) == ("quant.method=mse", True, kl)
    assert "name=" not in first["command"]
