"""Mixed precision: which scheme a parameter gets, what is refused, and what another rule leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Quant
from llm_build.core.errors import UserError
from llm_build.planner import resolve
from llm_build.planner.schemes import schemes
from llm_build.quant import reference, rules
from llm_build.quant.layout import Scheme, parse_scheme
from tests.weights.weights_line import ARCHITECTURE, run_weights, source_tensors, write_checkpoint

NAMES = [f"model.layers.{i}.{part}.weight" for i in range(10) for part in ("self_attn.o_proj", "mlp.down_proj")]
BASE = {"name": "base", "kind": "group", "bits": 4, "group_size": 32, "layout": "NK", "dtype": "float16"}
BASE |= {"storage_dtype": "uint32", "quantize_embedding": True, "quantize_head": True}
EIGHT = {**BASE, "name": "eight", "bits": 8}
SINGLE = {**BASE, "name": "single", "dtype": "float32"}


def load(name: str) -> dict[str, Any]:
    return {"eight": EIGHT, "single": SINGLE, "ruled": {**BASE, "rules": [{}]}}[name]


def mixed(*given: dict[str, Any], names: list[str] = NAMES) -> Scheme:
    return parse_scheme({**BASE, "rules": rules.resolve(given, names, "float16", load)})


def layers_of(given: object) -> list[int]:
    found = mixed({"match": "*.down_proj", "layers": given, "use": "eight"})
    assert all(found.for_parameter(name).bits == 4 for name in NAMES if "o_proj" in name)
    return [i for i in range(10) if found.for_parameter(f"model.layers.{i}.mlp.down_proj.weight").bits == 8]


def test_layers():
    assert layers_of("all") == list(range(10))
    assert layers_of("first_last_eighth") == [0, 1, 8, 9]  # an eighth of ten, rounded up
    assert layers_of([0, [4, 6], 9]) == [0, 4, 5, 6, 9]


def test_the_first_rule_that_matches_decides():
    eight = {"match": ["*.down_proj", "nothing"], "layers": [3], "use": "eight"}
    found = mixed(eight, {"match": "*proj", "use": "eight"})
    assert {found.for_parameter(name).bits for name in NAMES} == {8}
    assert found.for_parameter("model.embed_tokens.weight") == parse_scheme(BASE)
    assert mixed().for_parameter(NAMES[0]) == parse_scheme(BASE)
    assert mixed({"match": ["lm_head", "embed_out"], "use": "eight"}).for_parameter(NAMES[0]) == parse_scheme(BASE)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"match": "*.down_prj", "use": "eight"}, r"rules\[0\].match: \*.down_prj matches no parameter; did you mean"),
        ({"match": 3, "use": "eight"}, "allowed: a pattern such as"),
        ({"match": "*", "use": "single"}, "single has dtype float32; the scheme with the rules has float16"),
        ({"match": "*", "use": "ruled"}, "ruled has rules itself"),
        ({"match": "*", "use": 8}, r"rules\[0\].use: found 8; allowed: the name of a scheme"),
        ({"match": "*", "use": "eight", "layer": 1}, "layer is not a key of a rule; did you mean layers"),
        ({"match": "*", "use": "eight", "layers": "most"}, "found 'most'; allowed: all, first_last_eighth, or a list"),
        ({"match": "*", "use": "eight", "layers": [[8, 10]]}, r"found \[8, 10\]; allowed: .*, from 0 to 9"),
        ({"match": "*", "use": "eight", "layers": [True]}, "found True"),
    ],
)
def test_a_rule_that_cannot_stand_is_refused(rule: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        mixed(rule)


def items(tmp_path: Path, name: str, *given: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    folder, shapes = tmp_path / "source", source_tensors()
    if not folder.exists():
        write_checkpoint(folder, shapes)
    names = [n for n in shapes if n.endswith("proj.weight")]
    table = {**BASE, "rules": rules.resolve(given, names, "float16", load)}
    built = run_weights(folder, tmp_path / name, ARCHITECTURE, table, max_shard_bytes=20000)
    return built.shard.json("shards.json")["items"], built.arrays()


def test_another_rule_changes_only_the_shards_of_its_parameters(tmp_path: Path):
    """An item's params and inputs are what its key is made of."""
    head = {"match": "*.o_proj", "layers": [0], "use": "eight"}
    before, arrays = items(tmp_path, "x", head, {"match": "*.down_proj", "layers": [1], "use": "eight"})
    after, _ = items(tmp_path, "y", head, {"match": "*.down_proj", "layers": [0], "use": "eight"})
    holds = [{p["name"] for p in item["params"]["parameters"]} for item in before]
    assert [{p["name"] for p in item["params"]["parameters"]} for item in after] == holds
    touched = {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    changed = [one != two for one, two in zip(before, after, strict=True)]
    assert changed == [bool(names & touched) for names in holds]
    assert 2 == sum(changed) < len(changed) - 2
    weight = source_tensors()["model.layers.1.mlp.down_proj.weight"][1].astype(np.float32)
    words, _ = reference.quantize(weight, parse_scheme(EIGHT))
    np.testing.assert_array_equal(arrays["model.layers.1.mlp.down_proj.q_weight"], words)


def test_shards_stay_under_their_limit(tmp_path: Path):
    found, _ = items(tmp_path, "x", {"match": "*.down_proj", "use": "eight"})
    assert all(item["params"]["nbytes"] <= 20000 for item in found)


def resolved(*overrides: str) -> Any:
    return resolve.resolve(compose.compose(list(overrides), None), find_folders())


def test_shipped_mixtures_are_resolved_into_content():
    found = resolved("quant=mixed_q4_q8").quant
    assert [rule["use"]["bits"] for rule in found.rules] == [8, 8]
    assert found.rules[1]["layers"] == [0, 3]
    assert [rule["use"]["bits"] for rule in resolved("quant=mixed_q3_q4_q6").quant.rules] == [6, 4]


def test_a_scheme_that_does_not_fit_names_the_nearest_that_does():
    with pytest.raises(UserError, match="groups of 512 weights") as caught:
        resolved("quant=q8f32_1", "quant.group_size=512")
    assert "quant=q8f32_1" in caught.value.hint
    with pytest.raises(UserError, match="groups of 1024") as caught:
        resolved("quant=mixed_q3_q4_q6", "quant.group_size=1024")
    assert "quant=q3f16_1" in caught.value.hint


def test_an_unknown_scheme_in_a_rule_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"quant=q8f16_2: no such choice; did you mean .*q8f16_1"):
        resolved("quant.rules=[{match: '*.down_proj', use: q8f16_2}]")


def test_a_scheme_without_rules_does_not_mention_them():
    assert "rules" not in schemes.scheme_of(Quant())
