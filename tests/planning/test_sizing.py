"""Memory from shapes alone, and what is done where a target has too little of it."""

from __future__ import annotations

import copy
import re
from dataclasses import asdict, replace
from functools import cache
from math import prod

import pytest
import yaml

from llm_build import architectures
from llm_build.config import compose
from llm_build.config.choices import Composed, find_folders
from llm_build.config.schema import DeviceLimits, Metadata, Model, Recipe, Target
from llm_build.config.strict import nowhere
from llm_build.core.errors import Unsupported, UserError
from llm_build.planner import resolve
from llm_build.planner.feasibility import device_memory as memory
from llm_build.planner.feasibility import sharding, sizing
from llm_build.planner.schemes import schemes
from llm_build.quant.layout import parse_scheme

SIZES = Metadata(1024, -1, 512, 0, 4, 1)
LLAMA = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "vocab_size": 32000, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096,
}  # fmt: skip
GROUPED = LLAMA | {"num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 128256}
NEOX = {
    "model_type": "gpt_neox", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 2,
    "num_attention_heads": 16, "vocab_size": 50304, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}  # fmt: skip
QWEN3 = {
    "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
GEMMA2 = {
    "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 2,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
    "max_position_embeddings": 8192, "sliding_window": 4096,
}  # fmt: skip
OLMO2 = LLAMA | {"model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16}
MIXTRAL = GROUPED | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "num_hidden_layers": 2}
PLANNED = {  # bytes that TVM's planner gave to the prefill of 512 rows: memory_usage, less two rows for the last token
    "llama": (LLAMA, "q4f16_1", 92_798_976),
    "llama, grouped": (GROUPED, "q4f16_1", 117_440_512),
    "llama, rounded inputs": (LLAMA, "w8a8", 81_659_904),
    "gpt_neox": (NEOX, "q4f16_1", 50_331_648),
    "gpt_neox, rounded inputs": (NEOX, "w8a8", 41_945_088),
    "qwen3": (QWEN3, "q4f16_1", 29_360_128),
    "qwen3, rounded inputs": (QWEN3, "w8a8", 28_837_888),
    "gemma2": (GEMMA2, "q4f16_1", 61_341_696),
    "olmo2": (OLMO2, "q4f16_1", 62_914_560),
    "olmo2, rounded inputs": (OLMO2, "e5m2_e5m2_f16", 71_305_216),
    "mixtral": (MIXTRAL, "q4f16_1", 293_625_856),
}


PLANNED_OF_TWO = {  # on each of two ranks, less what the last token's logits take beside
    "llama": 43_515_904, "gpt_neox": 25_165_824, "qwen3": 14_680_064, "gemma2": 37_748_736, "olmo2": 33_554_432,
    "mixtral": 96_493_568,
}  # fmt: skip


def shapes_of(config_json: dict, name: str = "q0f16", **target) -> memory.Shapes:
    family = architectures.load(config_json["model_type"])
    config = family.from_hf(config_json)
    found = parse_scheme(schemes.table_of_choice(name, find_folders()))
    return memory.model_shapes(family.parameters(config), asdict(config), found, Target(**target))


@cache
def composed(choice: str) -> Composed:
    """Hydra takes half a second, so it composes each choice of a scheme once."""
    return compose.compose([choice], None)


def demo(*overrides: str) -> Recipe:
    """The demo's recipe; values are set as Hydra would set them."""
    choice = next((text for text in overrides if text.startswith("quant=")), "quant=q4f16_1")
    found = composed(choice)
    values = copy.deepcopy(found.values)
    for text in overrides:
        path, _, value = text.partition("=")
        *groups, key = path.split(".")
        if groups:
            place = values
            for group in groups:
                place = place.setdefault(group, {})
            place[key] = yaml.safe_load(value)
    return resolve.resolve(replace(found, values=values), find_folders())


def refusal(*overrides: str) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        demo(*overrides)
    return caught.value


@pytest.mark.parametrize("name", PLANNED)
def test_activations_are_what_the_planner_gives(name):
    config_json, found, planned = PLANNED[name]
    assert 512 * sum(shapes_of(config_json, found).widths) == planned


@pytest.mark.parametrize("name", PLANNED_OF_TWO)
def test_activations_of_a_rank_are_what_the_planner_gives(name):
    config_json, found, _ = PLANNED[name]
    assert 512 * sum(shapes_of_rank(config_json, 2, found).widths) == PLANNED_OF_TWO[name]


def shapes_of_rank(config_json: dict, shards: int, name: str, **target) -> memory.Shapes:
    family = config_json["model_type"]
    whole = asdict(architectures.load(family).from_hf(config_json))
    table, architecture = sharding.of_each_rank(family, whole, shards)
    found = parse_scheme(schemes.table_of_choice(name, find_folders()))
    return memory.model_shapes(table, architecture, found, Target(**target), shards)


def test_llama_70b_fits_one_h100_in_4_bits_and_two_in_float16():
    """Weights: 4.5 bits of 69 thousand million, half of them a rank but for the embedding, which each has."""
    model = LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                     "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip
    sizes = Metadata(4096, -1, 2048, 0, 4, 1)
    one, two = (memory.memory_needed(shapes_of_rank(model, count, "q4f16_1"), sizes) for count in (1, 2))
    embedding = 32000 * 8192 * 4.5 / 8
    norms = (2 * 80 + 1) * 8192 * 2
    assert one.weights == pytest.approx(38.8e9, rel=0.01)
    assert two.weights == (one.weights + embedding + norms) / 2
    pages = 4 * 4096 // 16 + 1
    assert one.cache == 80 * pages * 16 * 2 * 8 * 128 * 4 == 2 * two.cache
    assert two.activations < one.activations
    plain = [memory.memory_needed(shapes_of_rank(model, count, "q0f16"), sizes).total for count in (1, 2, 4)]
    assert plain[0] > 130e9
    assert plain[1] < 85e9
    assert plain[2] < 45e9


def test_llama_7b_by_hand():
    found = memory.memory_needed(shapes_of(LLAMA, runtime_bytes=7), SIZES)
    layer = 4 * 4096 * 4096 + 3 * 4096 * 11008 + 2 * 4096
    assert found.weights == 2 * (32 * layer + 2 * 32000 * 4096 + 4096)
    assert found.cache == 32 * (4 * 1024 // 16 + 1) * 2 * 16 * 4096 * 4
    buffers = 512 * (4 * 4096 * 4 + 2 * 32 * 4)  # q, k, v, results; two sums a head
    assert found.activations > 92_798_976 + 512 * 4096 * 4 + buffers
    assert found.activations < 1.1 * (92_798_976 + 512 * 4096 * 4 + buffers)
    assert found.total == found.weights + found.cache + found.activations + 7


def test_a_runtime_of_one_sequence_has_one_context():
    one, four = shapes_of(LLAMA, max_sequences=1), shapes_of(LLAMA)
    pages = [memory.memory_needed(found, SIZES).cache // (32 * 2 * 16 * 4096 * 4) for found in (one, four)]
    assert pages == [65, 257]


def test_plan_knows_the_demo():
    recipe = demo("target.memory_bytes=8000000000")
    said = sizing.describe_memory(sizing.memory_of(recipe), recipe.metadata, recipe.target)
    assert said == (
        "123.4 MB of 8.0 GB: weights 2.5 MB, KV cache 8.4 MB (4 sequences of 1024 tokens), activations 16.5 MB, "
        "runtime 96.0 MB"
    )


AUTO = [f"model.{key}=auto" for key in sizing.FLOORS]


@pytest.mark.parametrize(
    ("mega", "overrides", "expected"),
    [
        (None, AUTO, (1024, 1024, 4)),
        (204, AUTO, (1024, 1024, 41)),
        (116, AUTO[:1], (688, 688, 4)),
        (108, AUTO[:1], None),
        (108, AUTO, (624, 512, 1)),
        (103, AUTO, (1024, 139, 1)),
        (116, [AUTO[0], "model.prefill_chunk_size=600"], (880, 600, 4)),
        (116, [AUTO[2], "model.context_window_size=512"], (512, 512, 8)),
    ],
)
def test_auto_is_the_largest_that_fits(mega, overrides, expected):
    limit = [] if mega is None else [f"target.memory_bytes={mega * 10**6}"]
    if expected is None:
        assert "too little memory" in refusal(*overrides, *limit).message
        return
    recipe = demo(*overrides, *limit)
    sizes = recipe.metadata
    assert (sizes.context_window_size, sizes.prefill_chunk_size, sizes.max_batch_size) == expected
    if mega is not None:
        assert sizing.memory_of(recipe).total <= mega * 10**6


def test_one_page_or_token_or_sequence_more_does_not_fit():
    limit = 121 * 10**6
    for key, step in (("context_window_size", 16), ("prefill_chunk_size", 1), ("max_batch_size", 1)):
        fixed = "model.context_window_size=1024" if key != "context_window_size" else "model.max_batch_size=5"
        recipe = demo(f"model.{key}=auto", fixed, f"target.memory_bytes={limit}")
        larger = sizing.resized(recipe.metadata, key, getattr(recipe.metadata, key) + step)
        if key == "context_window_size":
            larger = replace(larger, prefill_chunk_size=larger.context_window_size)  # which null makes as long
        assert sizing.memory_of(replace(recipe, metadata=larger)).total > limit


def test_the_refusal_names_the_largest_that_fit():
    error = refusal("target.memory_bytes=119000000")
    assert error.message.startswith("target=cpu: too little memory: 123.4 MB of 119.0 MB: weights 2.5 MB, KV cache")
    offered = re.findall(r"model\.(\w+)=(\d+)", error.hint)
    assert [key for key, _ in offered] == ["context_window_size", "max_batch_size", "prefill_chunk_size"]
    for key, value in offered:
        demo("target.memory_bytes=119000000", f"model.{key}={value}")
        refusal("target.memory_bytes=119000000", f"model.{key}={int(value) + 16}")


def test_where_no_number_helps_all_do_or_another_scheme_does():
    assert refusal("target.memory_bytes=102000000").hint == f"build {' '.join(AUTO)}"
    error = refusal("target.memory_bytes=104000000", "quant=q0f32")
    assert error.hint.startswith("build quant=q4f16_2 or quant=")
    assert error.hint.endswith(", with model.context_window_size=auto")
    first = re.search(r"quant=(\w+)", error.hint)
    assert first
    demo("target.memory_bytes=104000000", f"quant={first[1]}", *AUTO)
    assert refusal("target.memory_bytes=97000000").hint == "a smaller model, or a larger target: build list target"


def test_a_tensor_that_no_kernel_can_be_given_is_refused():
    limits = "target.limits.max_binding_bytes="
    error = refusal(f"{limits}1000000", "quant=q0f32", *AUTO)
    assert (
        "target=cpu takes tensors of up to 1.0 MB (target.limits); model.embed_tokens.weight has 3.1 MB"
        in error.message
    )
    assert error.hint.startswith("build quant=")
    assert "a chunk's activations has 5.8 MB" in refusal(f"{limits}5000000").message
    assert demo(f"{limits}5000000", "model.prefill_chunk_size=auto").metadata.prefill_chunk_size == 887


def test_largest_tensor():
    found = shapes_of(GROUPED, limits=DeviceLimits(max_binding_bytes=1 << 30))
    assert memory.largest_tensor(found, SIZES) == ("model.embed_tokens.weight", 128256 * 4096 * 2)
    assert memory.largest_tensor(found, replace(SIZES, context_window_size=100_000, max_batch_size=32))[0].startswith(
        "the KV"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"context_window_size": 4097}, "model.context_window_size: 4097 is not possible; allowed: 1 to 4096"),
        ({"context_window_size": 64, "prefill_chunk_size": 65}, "model.prefill_chunk_size: 65 .* allowed: 1 to 64"),
        ({"context_window_size": 64, "sliding_window_size": 65}, "model.sliding_window_size: 65 .* allowed: 1 to 64"),
        ({"sliding_window_size": 16, "attention_sink_size": 16}, "model.attention_sink_size: 16 .* allowed: 0 to 15"),
        ({"attention_sink_size": 1}, "model.attention_sink_size: 1 is not possible; allowed: 0 "),
    ],
)
def test_sizes_that_the_model_does_not_have(fields, said):
    architecture = {"max_position_embeddings": 4096, "sliding_window": None}
    with pytest.raises(UserError, match=said):
        sizing.decide_metadata(Model(**fields), architecture, nowhere)


def test_auto_window_is_the_checkpoints():
    windowed = {"max_position_embeddings": 4096, "sliding_window": 32}
    given = Model(sliding_window_size="auto", context_window_size="auto")
    assert sizing.decide_metadata(given, windowed, nowhere).sliding_window_size == 32


def test_a_budget_counts_before_its_rules_are_picked():
    limit = f"target.memory_bytes={sizing.memory_of(demo()).total}"
    refused = refusal(limit, "quant.budget=6", "quant.candidates=[q4f16_1, q8f16_1]").message
    recipe = demo()
    weights = sum(prod(parameter.shape) for parameter in schemes.parameters(recipe.family, recipe.architecture))
    assert f"weights {6 * weights / 8e6:.1f} MB" in refused
