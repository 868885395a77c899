"""Whatever is wrong with the input ends with exit code 2, in whichever step it is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_build.core.errors import UserError
from llm_build.formats import checkpoint, torchbin
from llm_build.formats.tensorcache import read_tensor_cache
from llm_build.provenance import lock_file
from llm_build.steps import calibrate
from llm_build.verification import heldout, source_model

CONFIG = json.loads((Path(source_model.__file__).parents[1] / "demo" / "config.json").read_text())


class _Overflow:
    """A model whose logits are not finite."""

    def __call__(self, tokens: Any, use_cache: bool) -> Any:
        return type("Output", (), {"logits": torch.full((*tokens.shape, 4), float("inf"))})


def overflowing(folder: Path) -> None:
    source_model.logits(_Overflow(), np.zeros((2, 3), np.int32), 1)


def with_config(**changes: Any) -> Callable[[Path], None]:
    def load(folder: Path) -> None:
        source_model.load({**CONFIG, **changes}, {"a": [1]}, lambda name: torch.zeros(1), lambda *_: None)

    load.__name__ = f"config {changes}"
    return load


def tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    heldout.encode("a", folder / "tokenizer.json")


def infinite_input(folder: Path) -> None:
    calibrate._moment(torch.full((2, 3), float("inf")), 2, "lm_head.weight")


def no_pickle(folder: Path) -> None:
    (folder / "x.bin").write_bytes(b"no pickle")
    torchbin.to_safetensors(folder / "x.bin", "x.bin", folder / "out")


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    checkpoint.read_json(folder / "config.json", "config.json")


def no_lock(folder: Path) -> None:
    (folder / "x.lock.yaml").write_text("3")
    lock_file.read(folder / "x.lock.yaml")


def no_cache(folder: Path) -> None:
    read_tensor_cache("[]")


FAULTS = [
    overflowing, with_config(vocab_size="many"), with_config(pad_token_id=10**6), with_config(model_type="unknown"),
    with_config(architectures=["X"]), tokenizer, infinite_input, no_pickle, no_json, no_lock, no_cache,
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_of_the_input_is_the_user_s_to_mend(fault: Callable[[Path], None], tmp_path: Path):
    with pytest.raises(UserError) as error:
        fault(tmp_path)
    assert error.value.exit_code == 2
    assert "\n" not in error.value.message
