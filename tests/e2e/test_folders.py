"""A folder that holds what another recipe or checkpoint gave is not replaced unasked."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import Shell
from tests.e2e.test_main_job import bytes_of, copy_demo


def test_a_folder_of_another_recipe_is_not_replaced_unasked(demo: Shell, tmp_path: Path) -> None:
    shell = Shell(tmp_path, demo.store)
    shell.run("name=x", "verify=off")
    before = bytes_of(tmp_path / "dist" / "x")
    said = shell.run("name=x", "verify=off", "quant=q8f16_1", code=2).stderr
    assert "dist/x holds what another build gave: demo-q4f16_1-cpu; this one is demo-q8f16_1-cpu" in said
    assert "dist.replace=true" in said
    assert "this one is demo-q4f16_1-cpu-budget=5" in shell.run("name=x", "quant.budget=5.0", code=2).stderr
    assert bytes_of(tmp_path / "dist" / "x") == before
    shell.run("name=x")  # verify is no part of what is made
    shell.run("name=x", "verify=off", "model.max_batch_size=2", "dist.replace=true")
    assert bytes_of(tmp_path / "dist" / "x") != before


def test_a_checkpoint_that_moved_is_the_same_one_and_another_of_its_name_is_not(demo: Shell, tmp_path: Path) -> None:
    shell = Shell(tmp_path, demo.store)
    first, second = (copy_demo(tmp_path / place / "m") for place in ("a", "b"))
    words = ("model=auto", "verify=off")
    shell.run(*words, f"model.source={first}")
    said = shell.run(*words, f"model.source={second}", code=2).stderr
    assert f"dist/m-q4f16_1-cpu holds what another build gave: model.source={first}; this one is {second}" in said
    first.rename(tmp_path / "moved")
    shell.run(*words, f"model.source={second}")
    assert shell.ran(*words, f"model.source={second}") == set()


def test_generate_takes_a_built_folder_of_this_user_and_no_other(demo: Shell, tmp_path: Path) -> None:
    shell = Shell(tmp_path, demo.store)
    folder = tmp_path / "dist" / "x=1"
    shell.run("name='x=1'", "verify=off")
    said = shell.json("generate", "dist/x=1", "n=1", "--max-tokens", "4")
    assert (said["folder"], said["prompt"]) == ("dist/x=1", "n=1")
    assert said["text"]
    assert "q8f16_1 would change nothing" in shell.run("generate", "dist/x=1", "a", "quant=q8f16_1", code=2).stderr
    other = f"store.path={tmp_path}/other"
    assert "was not built by you" in shell.run("generate", "dist/x=1", "a", other, code=2).stderr
    shell.run("generate", "dist/x=1", "a", "--max-tokens", "1", other, "store.trust=all")
    (library,) = folder.glob("*.so")
    damaged = library.read_bytes() + b"x"
    library.unlink()
    library.write_bytes(damaged)
    said = shell.run("generate", "dist/x=1", "a", "store.trust=all", code=2).stderr
    assert "is not the library that build.json lists" in said
