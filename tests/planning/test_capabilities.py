"""What a target cannot compute is refused before anything is looked for, with the schemes that it can."""

from __future__ import annotations

import pytest
import yaml

from llm_build.config import compose
from llm_build.config.choices import choices_of, find_folders
from llm_build.config.schema import Quant, Target
from llm_build.config.strict import parse
from llm_build.core.errors import Unsupported
from llm_build.planner import resolve, sources
from llm_build.planner.feasibility import capabilities

AMPERE = {"kind": "cuda", "arch": ("sm_86",), "supports": ("float16", "bfloat16", "float8", "int8_dot")}
BROWSER = {"kind": "webgpu", "supports": ("float16", "int8_dot")}
NO_F16 = {"kind": "webgpu", "supports": ("int8_dot",)}
APPLE = {"kind": "metal", "supports": ("float16", "bfloat16")}


def quant(name: str) -> Quant:
    file = choices_of("quant", find_folders())[name]
    return parse(Quant, yaml.safe_load(file.read_text()), "quant")


def refusal(scheme: Quant, **fields) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        capabilities.check(scheme, Target(**fields), "there", find_folders())
    return caught.value


def test_float8_maths_on_an_a6000_is_refused_before_the_checkpoint_is_looked_for(monkeypatch):
    monkeypatch.setattr(sources, "locate", lambda *_: pytest.fail("looked for the checkpoint"))
    composed = compose.compose(["model=llama2", "quant=e4m3_e4m3_f16", "target=a6000"], None)
    with pytest.raises(Unsupported) as caught:
        resolve.resolve(composed, find_folders())
    assert caught.value.message == (
        "quant=e4m3_e4m3_f16: the scheme multiplies inputs as e4m3, and target=a6000 has no 8-bit float matrix "
        "instructions: sm_86; sm_89 or later has them"
    )
    assert caught.value.hint == "build quant=e4m3_f16 or quant=q0f16 or quant=q4f16_1"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "fields", "lacks", "offered"),
    [
        ("e5m2_e5m2_f16", AMPERE, "8-bit float matrix instructions", ["e5m2_f16", "q0f16", "q4f16_1"]),
        ("w8a8", BROWSER | {"supports": ("float16",)}, "int8 dot products", ["q8f16_1", "q0f16", "q4f16_1"]),
        ("q4f16_1", NO_F16, "float16 arithmetic", ["q4f32_1", "q0f32"]),
        ("q8f16_1", NO_F16, "float16 arithmetic", ["q8f32_1", "q0f32", "q4f32_1"]),
        ("q0bf16", BROWSER, "bfloat16 arithmetic", ["q0f16", "q4f16_1"]),
        ("q4bf16_1", APPLE | {"triple": "arm64-apple-macos13.3"}, "on macos13; macos 14 or", ["q4f16_1", "q0f16"]),
        ("q4bf16_1", APPLE | {"triple": "arm64-apple-ios16"}, "on ios16; ios 17 or later", ["q4f16_1", "q0f16"]),
    ],
)  # fmt: skip
def test_refusal_says_what_is_lacking_and_offers_the_nearest(name, fields, lacks, offered):
    error = refusal(quant(name), **fields)
    assert lacks in error.message
    assert error.hint == "build " + " or ".join(f"quant={each}" for each in offered)


def test_every_architecture_of_a_target_must_have_it():
    arch = ("sm_80", "sm_89", "sm_90a")
    error = refusal(quant("e4m3_e4m3_f16"), **AMPERE | {"arch": arch})
    assert ": sm_80; sm_89 or later" in error.message
    assert error.hint.endswith(" or target.arch=[sm_89,sm_90a]")
    newer = Target(**AMPERE | {"arch": arch[1:]})
    capabilities.check(quant("e4m3_e4m3_f16"), newer, "there", find_folders())


def test_a_rule_can_ask_for_more_than_the_scheme():
    mixed = parse(Quant, {**yaml.safe_load(choices_of("quant", find_folders())["q4f16_1"].read_text()),
                          "rules": [{"match": "*.down_proj", "use": "e4m3_e4m3_f16"}]}, "quant")  # fmt: skip
    assert "a rule's e4m3_e4m3_f16 multiplies inputs as e4m3" in refusal(mixed, **AMPERE).message


def test_a_target_that_can_is_not_refused():
    folders = find_folders()
    capabilities.check(quant("q4bf16_1"), Target(**APPLE | {"triple": "arm64-apple-macos14"}), "there", folders)
    capabilities.check(quant("w8a8"), Target(**AMPERE), "there", folders)
    for name in choices_of("quant", folders):
        if name != "imported":  # which is whatever the checkpoint holds
            capabilities.check(quant(name), Target(kind="cpu"), "cpu", folders)


def test_nothing_is_offered_where_nothing_runs(monkeypatch):
    monkeypatch.setattr(capabilities, "choices_without_rules", lambda _: {})
    assert refusal(quant("q4f16_1"), **NO_F16).hint == "another target: build list target"


@pytest.mark.parametrize(
    ("target", "reason"),
    [("vulkan", "has no Vulkan code generator"), ("rocm", "links it only with ROCm's own ld.lld and bitcode")],
)
def test_targets_that_the_compiler_cannot_make_are_refused_by_name(target, reason):
    with pytest.raises(Unsupported, match=f"target={target}: apache-tvm's wheel .*{reason}"):
        resolve.resolve(compose.compose([f"target={target}"], None), find_folders())


def test_shipped_targets_say_what_is_known():
    for name, file in choices_of("target", find_folders()).items():
        target = parse(Target, yaml.safe_load(file.read_text()), "target")
        assert set(target.supports) <= set(capabilities.DESCRIPTIONS), name
        assert target.kind == "cpu" or target.refused or target.supports or name == "webgpu-f32", name
        assert target.memory_bytes is None or target.runtime_bytes, name
