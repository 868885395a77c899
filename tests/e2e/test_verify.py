"""Verify on the real line (transformers, compiler, runtime): green on the demo, red on sabotage, with its number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm_build.core.errors import StepError
from llm_build.core.step_io import File
from tests.e2e.chain import DEMO, Line, line, stored_array, whole
from tests.matrix import checkpoints


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, dict[str, File], dict[str, dict[str, File]]]:
    """The demo in q4f16_1: its line, its artifact, its references."""
    made = line(DEMO, "q4f16_1", tmp_path_factory.mktemp("good"))
    return made, made.package(made.library("lower")), made.references()


def test_the_demo_is_green(good):
    made, files, references = good
    out = made.verify(files, references)
    found = json.loads((out.folder / "verify.json").read_text())
    assert {path["positions"] for path in found["paths"].values()} >= {128, 64}
    assert max(path["exact"]["max_error"] for path in found["paths"].values()) < 2e-5
    assert 0.9 < found["perplexity"]["ratio"] < 1.08
    assert found["perplexity"]["built"] == pytest.approx(found["perplexity"]["dequantized"], rel=1e-5)
    assert found["perplexity"]["original"] < 80
    assert out.facts["perplexity"] == pytest.approx(found["perplexity"]["built"], rel=1e-3)
    assert found["limits"] == {"exact_max": 1e-4, "exact_rms": 1e-5}  # 20 times the demo's own rounding is less
    assert 1e-8 < found["rounding"]["rms"] < found["rounding"]["max"] < 5e-6
    assert found["context_free"]["kl"] > 1.5


@pytest.mark.parametrize(
    ("changes", "number", "hint"),
    [
        ({"rope_theta": 20000.0}, r"one shot: max error 0\.\d+ ", "position 0 agrees"),
        ({"rms_norm_eps": 1e-6}, r"one shot: max error 0\.0\d+ ", "rms_norm_eps"),
    ],
    ids=["rope base", "norm epsilon"],
)
def test_a_library_of_another_model_is_red(changes: dict[str, float], number: str, hint: str, good):
    made, _, references = good
    name = next(iter(changes))
    files = made.package(made.library(f"lower-{name}", **changes), f"package-{name}")
    with pytest.raises(StepError, match=number) as error:
        made.verify(files, references, f"verify-{name}")
    assert hint in error.value.hint
    assert "verify.exact_max 0.0001" in error.value.message
    assert (made.folder / f"verify-{name}" / "verify.json").is_file()


def copy_shards(files: dict[str, File], folder: Path) -> dict[str, File]:
    """The artifact with weight files of its own."""
    folder.mkdir()
    own = dict(files)
    for name in [name for name in files if name.startswith("params_shard_")]:
        (folder / name).write_bytes(files[name].path.read_bytes())
        own[name] = whole(folder / name)
    return own


def swap_heads(files: dict[str, File], made: Line) -> None:
    """Heads 0 and 3 of layer 2's queries."""
    for piece in ("q_weight", "q_scale"):
        rows = stored_array(made, f"model.layers.2.self_attn.qkv_proj.{piece}", files)
        rows[:32], rows[96:128] = rows[96:128].copy(), rows[:32].copy()


def one_scale(files: dict[str, File], made: Line) -> None:
    """One group of 32 weights among 22 x 256 of one matrix: 5% too large."""
    stored_array(made, "model.layers.1.mlp.down_proj.q_scale", files)[17, 3] *= np.float16(1.05)


def one_nan(files: dict[str, File], made: Line) -> None:
    stored_array(made, "model.norm.weight", files)[9] = np.nan


@pytest.mark.parametrize(
    ("sabotage", "said"),
    [
        (swap_heads, r"same dequantized weights: one shot: max error [01]\.\d+ "),
        (one_scale, r"same dequantized weights: one shot: max error [\d.e-]+ "),
        (one_nan, r"one shot: the library gives NaN or infinity in window 0 at position 0"),
    ],
)
def test_an_artifact_whose_weights_were_changed_is_red(sabotage, said: str, good, tmp_path: Path):
    made, files, references = good
    changed = copy_shards(files, tmp_path / "changed")
    sabotage(changed, made)
    with pytest.raises(StepError, match=said):
        made.verify(changed, references, f"verify-{sabotage.__name__}")


@pytest.mark.parametrize("sabotage", [swap_heads, one_scale])
def test_a_quantizer_that_did_it_is_red_too(sabotage, good, tmp_path: Path):
    """Artifact and dequantized reference agree, on the same wrong weights; comparing the weights tells."""
    _, files, _ = good
    made = line(DEMO, "q4f16_1", tmp_path / "line")
    sabotage({file.path.name: file for file in made.shards().values()}, made)
    with pytest.raises(
        StepError, match=r"not their source rounded to nearest: 1 parameter\. model\.layers\.\d\.\S+, row \d+"
    ):
        made.verify(made.package(files["it.so"]), made.references())


BIAS = "model.layers.1.self_attn.qkv_proj.bias"


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> tuple[Line, dict[str, File]]:
    """A small Qwen2 whose biases are not zero, as transformers makes them: its line, its artifact."""
    from safetensors.numpy import load_file, save_file

    folder = checkpoints.make("qwen2", tmp_path_factory.mktemp("qwen2"))
    tensors, random = load_file(folder / "model.safetensors"), np.random.default_rng(0)
    for name in sorted(name for name in tensors if name.endswith(".bias")):
        tensors[name] = random.normal(0, 0.1, tensors[name].shape).astype(np.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    made = line(folder, "q4f16_1", tmp_path_factory.mktemp("biased"))
    return made, made.package(made.library("lower"))


def test_an_artifact_that_dropped_a_bias_is_red(biased, tmp_path: Path):
    made, files = biased
    references = made.references()
    made.verify(files, references)
    changed = copy_shards(files, tmp_path / "changed")
    stored_array(made, BIAS, changed)[:] = 0
    with pytest.raises(StepError, match=r"same dequantized weights: one shot: max error [01]\.\d+ "):
        made.verify(changed, references, "verify-dropped")


def test_a_quantizer_that_dropped_a_bias_is_red_too(biased):
    """Runs last: it changes the line's own weights."""
    made, files = biased
    stored_array(made, BIAS, {file.path.name: file for file in made.shards().values()})[:] = 0
    with pytest.raises(StepError, match=rf"{BIAS}.*0\.\d+"):
        made.verify(made.package(files["it.so"], "package-dropped"), made.references(), "verify-source")
