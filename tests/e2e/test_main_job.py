"""The main job as a user runs it: build, rebuild, change something, look at what reran."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import llm_build
from tests.conftest import ROOT, Shell, bytes_of

DEMO = Path(llm_build.__file__).parent / "demo"
CHECKPOINT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
CONTRACT = {
    "mlc-chat-config.json", "tensor-cache.json", "ndarray-cache.json", "params_shard_0.bin", "tokenizer.json",
    "tokenizer_config.json", "build.json", "README.md", "demo-q4f16_1-cpu.so",
}  # fmt: skip


def copy_demo(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in (*CHECKPOINT, *(f.name for f in DEMO.glob("model*"))):
        shutil.copy(DEMO / file, folder / file)
    return folder


def change_tensor(folder: Path, name: str, change) -> None:
    """Applies ``change`` to one float16 tensor of a safetensors checkpoint, in place."""
    shard = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    data = bytearray(shard.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    values = np.frombuffer(bytes(data[8 + length + start : 8 + length + end]), np.float16).copy()
    change(values)
    data[8 + length + start : 8 + length + end] = values.tobytes()
    shard.write_bytes(data)


@pytest.fixture
def own(demo: Shell, tmp_path: Path) -> tuple[Shell, Path, list[str]]:
    """The demo's store, a folder of its own, a copy of the checkpoint, and the words that build it."""
    (tmp_path / "work").mkdir()
    source = copy_demo(tmp_path / "checkpoint")
    return Shell(tmp_path / "work", demo.store), source, ["model=llama", f"model.source={source}", "verify=off"]


def test_artifact_follows_the_contract(demo: Shell):
    folder = demo.folder / "dist" / "demo-q4f16_1-cpu"
    assert {f.name for f in folder.iterdir()} >= CONTRACT
    cache = json.loads((folder / "tensor-cache.json").read_text())
    shard = (folder / "params_shard_0.bin").read_bytes()
    assert cache["records"][0]["nbytes"] == len(shard)
    chat = json.loads((folder / "mlc-chat-config.json").read_text())
    assert (chat["model_type"], chat["quantization"], chat["context_window_size"]) == ("llama", "q4f16_1", 1024)
    statement = json.loads((folder / "build.json").read_text())
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert {s["name"] for s in statement["subject"]} >= CONTRACT - {"build.json"}


def test_a_cluster_is_not_reached_where_nothing_is_stale(demo: Shell):
    line = ["build", "executor=ray", "executor.address=127.0.0.1:1"]
    assert "all 9 steps fresh" in demo.run(*line).stdout
    code = (
        "import sys, io, contextlib; from llm_build.__main__ import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()): code = main({line})\n"
        "print(code, 'ray' in sys.modules)"
    )
    command, where = [sys.executable, "-c", code], {"cwd": demo.folder, "env": demo.environment()}
    assert subprocess.run(command, **where, capture_output=True, text=True, check=True).stdout.strip() == "0 False"
    error = demo.run("quant=q4f16_1", "executor.address=auto", code=2).stderr
    assert "executor.address=auto with executor=local, which knows no other machine" in error


def test_another_launcher_builds_a_job_for_each_cell_and_hands_on_its_failure(demo: Shell):
    done = demo.run("-m", "quant=q4f16_1", "hydra/launcher=basic")
    assert "demo-q4f16_1-cpu: up to date (all 9 steps fresh)" in done.stdout
    done = demo.run("-m", "quant=q4f16_1", "verify.kl=1e-9", "dist.path=red", "hydra/launcher=basic", code=1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: the job ")]
    assert "quant=q4f16_1" in line
    assert line.endswith(" ended with exit code 1")


def test_second_build_runs_nothing_and_loads_nothing_heavy(demo: Shell):
    whole = demo.json("build")
    assert whole["recipes"][0]["status"] == "fresh"
    assert {s["status"] for s in whole["recipes"][0]["steps"]} == {"fresh"}
    code = (
        "import sys, io, contextlib; from llm_build.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()): code = main(['build'])\n"
        "print(code, [m for m in ('tvm', 'torch', 'transformers', 'numpy', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=demo.folder,
        env=demo.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0 []"


def test_json_document_has_the_promised_shape(demo: Shell):
    (recipe,) = demo.json("build")["recipes"]
    assert set(recipe) == {"name", "status", "output", "steps"}
    assert recipe["name"] == "demo-q4f16_1-cpu"
    assert Path(recipe["output"]) == demo.folder / "dist" / "demo-q4f16_1-cpu"
    for step in recipe["steps"]:
        assert {"name", "status", "reason", "seconds", "bytes", "key"} <= set(step)
    assert {s["name"].partition("[")[0] for s in recipe["steps"]} == {
        "fetch", "convert", "shard", "quantize", "lower", "package", "verify.reference", "verify.dequantized", "verify",
    }  # fmt: skip
    (planned,) = demo.json("plan")["recipes"]
    assert {s["status"] for s in planned["steps"]} == {"fresh"}
    (other,) = demo.json("plan", "quant=q4f32_1")["recipes"]
    assert {s["status"] for s in other["steps"]} == {"fresh", "stale", "blocked"}


def test_generate_prints_text_and_nothing_else(demo: Shell):
    done = demo.run("generate", "The function returns", "--max-tokens", "24", "--temperature", "0")
    assert done.stdout.startswith("The function returns ")
    assert len(done.stdout.split()) > 8
    again = demo.run("generate", "The function returns", "--max-tokens", "24", "--temperature", "0")
    assert again.stdout == done.stdout


def test_touching_or_moving_the_checkpoint_reruns_only_the_hashing(own):
    shell, source, words = own
    shell.run(*words)
    (source / "model-00001-of-00002.safetensors").touch()
    assert shell.ran(*words) <= {"fetch"}
    moved = source.rename(source.parent / "moved")
    assert shell.ran("model=llama", f"model.source={moved}", "verify=off") <= {"fetch"}
    assert shell.ran("model=llama", f"model.source={moved}", "verify=off") == set()


def test_changing_one_tensor_reruns_its_shard_and_package(own):
    shell, source, words = own
    small = [*words, "quant.max_shard_bytes=500000"]
    parts = [s for s in shell.statuses(*small) if s.startswith("quantize")]
    assert len(parts) > 3
    change_tensor(source, "model.layers.1.mlp.down_proj.weight", lambda w: w.__setitem__(0, 0.5))
    whole = shell.json(*small)["recipes"][0]["steps"]
    ran = {s["name"]: s["reason"] for s in whole if s["status"] == "ran"}
    (part,) = (name for name in ran if name.startswith("quantize"))
    assert set(ran) == {"fetch", part, "package"}
    assert "model.layers.1.mlp.down_proj.weight" in ran[part]


def test_changing_the_scheme_keeps_fetch_and_convert_and_the_context_keeps_the_weights(own):
    shell, _, words = own
    shell.run(*words)
    assert shell.ran(*words, "quant=q4f32_1").isdisjoint({"fetch", "convert"})
    ran = shell.ran(*words, "model.context_window_size=512")
    assert ran == {"lower", "package"}


def test_two_folders_and_two_stores_give_the_same_bytes(demo: Shell, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    other = Shell(tmp_path / "elsewhere", tmp_path / "other-store")
    other.run("build", "-j", "1")
    one, two = (bytes_of(s.folder / "dist" / "demo-q4f16_1-cpu") for s in (demo, other))
    assert [name for name in one if one[name] != two.get(name)] == []
    assert one.keys() == two.keys()


def test_edited_or_deleted_output_is_put_right(demo: Shell):
    folder = demo.folder / "dist" / "demo-q4f16_1-cpu"
    before = bytes_of(folder)
    (folder / "mlc-chat-config.json").unlink()
    card = folder / "README.md"
    card.unlink()
    card.write_text("mine")
    (folder / "notes.txt").write_text("the user's own")
    demo.run("build")
    after = bytes_of(folder)
    assert after.pop("notes.txt") == b"the user's own"
    assert after == before
    (folder / "notes.txt").unlink()


def test_why_and_graph_tell_of_the_plan(demo: Shell):
    assert "differs" in demo.run("why", "lower", "model.context_window_size=512").stdout
    told = demo.run("why", "lower", "model.context_window_size=512").stdout
    assert "  differs   model.context_window_size: 1024 → 512\n" in told
    done = demo.run("graph")
    assert "package" in done.stdout
    assert (demo.folder / "dist" / "demo-q4f16_1-cpu.svg").read_text().startswith("<svg")
    assert (demo.folder / "dist" / "demo-q4f16_1-cpu.mmd").read_text().startswith("flowchart")


def test_gc_says_when_there_is_nothing_to_free(shell: Shell):
    assert shell.run("gc").stdout.splitlines() == [
        "nothing to free; 0 B stay",
        "  next: build gc --max-age 30d   (or --max-size 20GB; both free results that are whole)",
    ]


def test_why_is_of_one_recipe(shell: Shell):
    done = shell.run("why", "lower", "-m", "quant=q0f16,q4f16_1", code=2)
    assert done.stderr.startswith("error: build why explains a step of one recipe, and -m asks for many")


def test_sweep_builds_every_combination(demo: Shell, tmp_path: Path):
    whole = demo.json("-m", "quant=q4f16_1,q4f32_1", "verify=off", f"dist.path={tmp_path}")
    assert [r["name"] for r in whole["recipes"]] == ["demo-q4f16_1-cpu", "demo-q4f32_1-cpu"]
    assert (tmp_path / "demo-q4f32_1-cpu" / "build.json").is_file()


def test_the_readme_and_ci_run_the_same_test_command():
    command = next(line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "pytest" in line)
    assert command.replace(" -q", "") in (ROOT / "README.md").read_text()
