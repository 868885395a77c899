"""A sweep with a cell that cannot be built leaves the others complete."""

from __future__ import annotations

from tests.conftest import Shell


def test_the_other_cells_are_built(demo: Shell):
    whole = demo.json("-m", "target=vulkan,cpu", "dist.path=swept", code=2)
    assert [(recipe["name"], recipe["status"]) for recipe in whole["recipes"]] == [
        ("demo-q4f16_1-vulkan", "unsupported"),
        ("demo-q4f16_1-cpu", "fresh"),
    ]
    folders = sorted(folder.name for folder in (demo.folder / "swept").iterdir() if not folder.name.startswith("."))
    assert folders == ["demo-q4f16_1-cpu"]
    done = demo.run("-m", "target=vulkan,cpu", "dist.path=swept", "--allow-unsupported")
    assert "demo-q4f16_1-vulkan: unsupported: target=vulkan: apache-tvm's wheel has no Vulkan" in done.stdout
    assert "demo-q4f16_1-cpu: up to date" in done.stdout
    assert not done.stderr


def test_a_sweep_of_nothing_but_refusals_is_one(demo: Shell):
    done = demo.run("-m", "target=vulkan,rocm", "dist.path=nothing", code=2)
    assert done.stdout.count(": unsupported: ") == 2
    assert not (demo.folder / "nothing").exists()
