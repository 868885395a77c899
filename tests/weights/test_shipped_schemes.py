"""Every scheme of conf/quant loses no more than its format must: the same rules, with everything in float64."""

from __future__ import annotations

from dataclasses import asdict, replace

import ml_dtypes
import numpy as np
import pytest

from llm_build.config.choices import choices_of, find_folders
from llm_build.planner.schemes import schemes
from llm_build.quant import asymmetric, pack, reference, storage
from llm_build.quant.layout import Scheme, parse_scheme

FOLDERS = find_folders()
FLOAT8 = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}


def shipped() -> dict[str, Scheme]:
    """Every scheme that packs something; the schemes that rules name are choices themselves."""
    found = {name: schemes.table_of_choice(name, FOLDERS) for name in choices_of("quant", FOLDERS)}
    parsed = {name: parse_scheme({k: v for k, v in table.items() if k != "rules"}) for name, table in found.items()}
    return {name: replace(each, rules=()) for name, each in parsed.items() if each.kind != "none"}


def came_back(weight: np.ndarray, found: Scheme) -> np.ndarray:
    """The weights (float32) as pack stores them."""
    rows, inputs = weight.shape
    packer = (asymmetric.Packer if found.zero_point else pack.Packer)(rows, inputs, "F32", found)
    words = np.empty((rows, packer.groups * packer.scheme.words_per_group), np.uint32)
    scales, raw = np.empty((rows, packer.groups), storage.NUMPY_DTYPE[found.scale_dtype]), weight.view(np.uint32)
    if found.scale_per == "tensor":
        whole = packer.largest(raw).reshape(1) / np.float32(found.max_magnitude)
        packer.tensor_scale, _ = storage.scales(whole, found.scale_dtype)
    zeros = [np.empty((rows, -(-packer.groups // found.per_word)), np.uint32)] if found.zero_point else []
    packer.pack(raw, words, scales, *zeros)
    return reference.dequantize(words, scales, inputs, found, *zeros)


def in_float64(weight: np.ndarray, found: Scheme) -> np.ndarray:
    """The weights as the format holds them when nothing but its scales is rounded to less than float64."""
    rows, inputs = weight.shape
    size = found.for_width(inputs).group_size
    wide = np.zeros((rows, -(-inputs // size) * size))
    wide[:, :inputs] = weight
    groups = wide.reshape(rows, -1, size)
    low, high = (np.minimum(groups.min(2), 0), np.maximum(groups.max(2), 0)) if found.zero_point else (0.0, 0.0)
    largest = np.abs(groups).max(axis=(0, 2) if found.scale_per == "tensor" else 2, keepdims=True)
    wanted = (high - low)[:, :, None] / found.max_level if found.zero_point else largest / found.max_magnitude
    steps = storage.widen(storage.narrow(wanted.astype(np.float32), found.scale_dtype), found.scale_dtype)
    steps = steps.astype(np.float64)
    if found.zero_point:
        zeros = np.clip(np.rint(-low[:, :, None] / steps), 0, found.max_level)
        exact = (np.clip(np.rint(groups / steps) + zeros, 0, found.max_level) - zeros) * steps
    elif found.kind in FLOAT8:
        bounded = np.clip(groups / steps, -found.max_magnitude, found.max_magnitude)
        exact = bounded.astype(FLOAT8[found.kind]).astype(np.float64) * steps
    else:
        exact = np.clip(np.rint(groups / steps), -found.max_int, found.max_int) * steps
    return exact.reshape(rows, -1)[:, :inputs]


@pytest.mark.parametrize("name", shipped())
def test_rounding_to_nearest_loses_no_more_than_in_float64(name: str) -> None:
    found, rng = shipped()[name], np.random.default_rng(8)
    for weight in (
        rng.standard_normal((24, 640)) * 0.03,
        rng.standard_t(3, (24, 650)) * np.geomspace(1e-3, 30, 24)[:, None],
    ):
        source = weight.astype(np.float32)
        ours, best = (
            np.square(back - source.astype(np.float64)).sum(axis=1)
            for back in (came_back(source, found), in_float64(source, found))
        )
        assert (ours <= best * (1 + 1e-5)).all(), asdict(found)
        assert ours.sum() > 0
