"""quant.method on the demo: what reruns, that it is verified, and that each is better than the one before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.conftest import Shell


def facts(done: dict[str, Any]) -> dict[str, float]:
    (recipe,) = done["recipes"]
    return next(step["facts"] for step in recipe["steps"] if step["name"] == "verify")


def test_methods_on_the_demo(demo: Shell, tmp_path: Path) -> None:
    shell = Shell(tmp_path, demo.store)
    weights = {"quantize[0]", "package", "verify.dequantized", "verify"}
    few = ("quant.method=gptq", "quant.calibration.tokens=4096")
    assert shell.ran("quant.method=rtn") == weights
    assert shell.ran("quant.method=mse") <= {"package", "verify"}, "the default, by another name"
    assert shell.ran(*few) == {"calibrate", "shard", *weights}
    assert shell.ran(*few) == set()
    scaled = ("quant.method=awq", *few[1:])
    assert shell.ran(*scaled) == {"scales", "shard", *weights}
    kl = [facts(shell.json(*words))["kl"] for words in (("quant.method=rtn",), (), scaled, few)]
    assert kl[1] < 0.8 * kl[0]
    assert kl[2] < 0.8 * kl[0]
    assert kl[3] < 0.6 * kl[0]
