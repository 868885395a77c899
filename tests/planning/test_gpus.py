"""target.gpus: what follows from it in the plan, and what is refused before any work, with the counts that work."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import pytest

from llm_build.app import doctor
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Recipe, Target
from llm_build.core.errors import BuildError, Unsupported, UserError
from llm_build.core.step import Step
from llm_build.planner import resolve
from llm_build.planner.feasibility import platforms, sizing
from llm_build.planner.graph import graph
from llm_build.targets import link, nvidia_gpus
from tests.planning.test_sizing import LLAMA, demo

TOPOLOGY = """
\tGPU0\tGPU1\tGPU2\tGPU3\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID
GPU0\t X \tNV18\tNV18\tSYS\tPIX\t0-31\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tSYS\tSYS\t0-31\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tSYS\tSYS\t32-63\t1\t\tN/A
GPU3\tSYS\tSYS\tSYS\t X \tSYS\t32-63\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes
"""


@pytest.fixture(autouse=True)
def one_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "identity", lambda: "ld:1")


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose nvidia-smi finds two."""
    program = tmp_path / "nvidia-smi"
    lines = "\n".join(f"GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})" for i in range(2))
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{lines}\nEND\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")


def steps_of(recipe: Recipe) -> dict[str, Step]:
    return {step.name: step for step in graph.build_plan([recipe]).steps.values()}


def refused(*overrides: str) -> BuildError:
    with pytest.raises(BuildError) as caught:
        demo(*overrides)
    assert caught.value.exit_code == 2
    return caught.value


def test_two_gpus_instead_of_one_lower_and_cut_again_and_do_nothing_else():
    one, two = steps_of(demo()), steps_of(demo("target.gpus=2"))
    same = {name for name, step in one.items() if two[name].id == step.id}
    assert same == {"fetch", "convert", "shard", "quantize", "verify.reference", "verify.dequantized"}
    assert set(two) - set(one) == {"ranks", "cut"}
    assert two["lower"].params["metadata"]["tensor_parallel_shards"] == 2
    assert two["lower"].params["target"] == one["lower"].params["target"]
    assert two["package"].inputs["shards"].step == two["cut"].id
    assert one["package"].inputs["shards"].step == one["quantize"].id


def test_whole_files_are_those_of_one_gpu():
    one, whole = steps_of(demo()), steps_of(demo("target.gpus=2", "package.sharding=whole"))
    assert set(whole) == set(one)
    assert whole["package"].inputs == {**one["package"].inputs, "library": whole["package"].inputs["library"]}


def test_shards_follow_the_gpus_unless_they_are_set():
    assert demo("target.gpus=2").metadata.tensor_parallel_shards == 2
    assert demo("model.tensor_parallel_shards=2").metadata.tensor_parallel_shards == 2
    assert demo("target.gpus=8", "model.tensor_parallel_shards=2").metadata.tensor_parallel_shards == 2
    assert demo().metadata.tensor_parallel_shards == 1
    with pytest.raises(UserError) as caught:
        resolved("target.gpus=1", "model.tensor_parallel_shards=2")
    assert caught.value.message == (
        "model.tensor_parallel_shards (on the command line): 2 shards need as many GPUs, and target.gpus is 1"
    )
    assert caught.value.hint == "build target.gpus=2"


REFUSED = [
    (("target.gpus=4",),
     "target.gpus=4: model.layers.0.mlp.down_proj.weight has groups of 32 inputs, and 4 ranks would have 176 inputs "
     "each; with quant=q4f16_1 this model can be cut for: 1, 2", "build target.gpus=2 or quant=w8a8"),
    (("model.tensor_parallel_shards=3",),
     "model.tensor_parallel_shards=3: num_attention_heads is 8, which 3 does not divide; with quant=q4f16_1 this model "
     "can be cut for: 1, 2", "build model.tensor_parallel_shards=2"),
    (("target.gpus=2", "quant=q3f16_1"),
     "target.gpus=2: model.layers.0.self_attn.o_proj.weight has groups of 40 inputs, and 2 ranks would have 128 inputs "
     "each; with quant=q3f16_1 this model can be cut for: 1", "build target.gpus=1 or quant=q4f16_1"),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "message", "hint"), REFUSED)
def test_what_does_not_divide_is_refused_with_what_works(overrides: tuple[str, ...], message: str, hint: str):
    error = refused(*overrides)
    assert isinstance(error, Unsupported)
    assert (error.message, error.hint) == (message, hint)


def test_every_scheme_that_a_budget_may_pick_must_divide():
    error = refused("quant.budget=4.5", "target.gpus=2")
    assert error.message == (
        "target.gpus=2: model.layers.0.self_attn.o_proj.weight has groups of 40 inputs, and 2 ranks would have 128 "
        "inputs each in q3f16_1, one of quant.candidates"
    )
    assert error.hint == "build quant.candidates=[q4f16_1,q8f16_1]"
    assert demo("quant.budget=5", "target.gpus=2", "quant.candidates=[q4f16_1,q8f16_1]").undecided


def resolved(*overrides: str) -> Recipe:
    return resolve.resolve(compose.compose(list(overrides), None), find_folders())


def test_a_target_of_one_device_is_refused():
    with pytest.raises(Unsupported) as caught:
        resolved("target=webgpu", "target.gpus=2")
    assert caught.value.message == (
        "target.gpus=2: target=webgpu runs a model on one device; targets of kind cpu and cuda spread it over several"
    )
    assert caught.value.hint == "build target=cuda target.gpus=2, or target.gpus=1"
    assert resolved("target=webgpu", "target.gpus=1").metadata.tensor_parallel_shards == 1


def test_auto_counts_the_gpus_of_this_machine(two_gpus: None):
    found = resolved("target=h100", "target.gpus=auto")
    assert (found.target.gpus, found.metadata.tensor_parallel_shards) == (2, 2)
    with pytest.raises(UserError) as caught:
        resolved("target.gpus=auto")
    assert caught.value.message == (
        "target.gpus (on the command line): auto counts this machine's NVIDIA GPUs; a target of kind cpu allows a "
        "number"
    )


def test_auto_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvidia_gpus, "run_nvidia_smi", lambda _: "")
    with pytest.raises(UserError, match="auto, but nvidia-smi finds no GPU here"):
        resolved("target=h100", "target.gpus=auto")


def test_a_library_of_more_gpus_than_there_are_is_not_run_here(two_gpus: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(platforms.cuda, "runs_here", lambda: True)
    assert [platforms.runs_here(Target("cuda"), shards) for shards in (1, 2, 4)] == [True, True, False]


def test_the_plan_says_what_each_gpu_holds():
    one, two = (demo(*more, "target.memory_bytes=200000000") for more in ((), ("target.gpus=2",)))
    memory = sizing.memory_of(two)
    assert memory.cache * 2 == sizing.memory_of(one).cache
    said = sizing.describe_memory(memory, two.metadata, two.target)
    assert re.match(r"\d+\.\d MB of 200\.0 MB on each of 2 processes: weights 1\.5 MB, KV cache 4\.2 MB \(", said)


def test_more_gpus_are_offered_where_one_is_too_small(tmp_path: Path):
    import json

    config = LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
                      "num_attention_heads": 64, "num_key_value_heads": 8}  # fmt: skip
    source = tmp_path / "llama_70b"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(Unsupported) as caught:
        resolved(f"model.source={source}", "model=auto", "target=h100", "quant=q0f16")
    assert caught.value.hint.startswith("build target.gpus=2 or quant=q8f32_1 or quant=q8f16_1 or ")
    found = resolved(f"model.source={source}", "model=auto", "target=h100", "quant=q0f16", "target.gpus=2",
                     "model.max_batch_size=auto")  # fmt: skip
    assert sizing.memory_of(found).total < found.target.memory_bytes


def test_links_between_gpus_are_read():
    found = nvidia_gpus.read_links(TOPOLOGY)
    assert found == [(0, 1, "NV18"), (0, 2, "NV18"), (0, 3, "SYS"), (1, 2, "NV18"), (1, 3, "SYS"), (2, 3, "SYS")]
    assert (
        nvidia_gpus.describe_links(found) == "NVLink (NV18) 0-1 0-2 1-2, the link between NUMA nodes (SYS) 0-3 1-3 2-3"
    )
    assert nvidia_gpus.describe_links(found[:2]) == "NVLink (NV18) between all"
    assert nvidia_gpus.read_links("\tGPU0\tCPU Affinity\nGPU0\t X \t0-31\n") == []


def test_nccl_is_found_in_the_package_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(nvidia_gpus, "FOLDERS", ())
    monkeypatch.setattr(nvidia_gpus.sys, "path", [str(tmp_path)])
    assert nvidia_gpus.find_nccl() is None
    library = tmp_path / "nvidia" / "nccl" / "lib" / "libnccl.so.2"
    library.parent.mkdir(parents=True)
    library.touch()
    assert nvidia_gpus.find_nccl() == (library, "the Python package nvidia-nccl")


def test_doctor_shows_what_several_gpus_need():
    missing = doctor.rows_of_several_gpus("NVLink (NV18) between all", None)
    assert [(row["name"], row["status"]) for row in missing] == [("links of gpus", "ok"), ("nccl", "missing")]
    assert missing[0]["found"] == "NVLink (NV18) between all"
    assert "pip install nvidia-nccl-cu13" in missing[1]["found"]
    found = doctor.rows_of_several_gpus("", (Path("/usr/lib/libnccl.so.2"), "/usr/lib"))
    assert [row["status"] for row in found] == ["ok", "ok"]
