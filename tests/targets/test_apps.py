"""Folders for apps: what MLC's own packaging makes, from the same steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Shell, bytes_of
from tests.targets.conftest import dist

IOS, ANDROID = "demo-q4f16_1-ios-ios_app", "demo-q4f16_1-android-android_app"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_what_xcode_includes(apps: Shell):
    folder = dist(apps, IOS)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "README.md", "build.json", "mlc-package-config.json", "lib/libmodel_iphone.a", f"lib/{IOS}.tar",
        "bundle/mlc-app-config.json",
        *(f"bundle/{IOS}/{name}" for name in (
            "mlc-chat-config.json", "ndarray-cache.json", "tensor-cache.json", "params_shard_0.bin", "tokenizer.json",
            "tokenizer_config.json",
        )),
    }  # fmt: skip
    (model,) = read(folder / "bundle" / "mlc-app-config.json")["model_list"]
    assert (model["model_id"], model["model_path"]) == (IOS, IOS)
    assert model["estimated_vram_bytes"] > 2_000_000  # the weights alone
    weights = (folder / "bundle" / IOS / "params_shard_0.bin").stat()
    assert weights.st_size == (dist(apps, "demo-q4f16_1-ios") / "params_shard_0.bin").stat().st_size


def test_what_gradle_includes(apps: Shell):
    folder = dist(apps, ANDROID)
    (model,) = read(folder / "lib/mlc4j/src/main/assets/mlc-app-config.json")["model_list"]
    assert model.keys() == {"model_id", "model_lib", "estimated_vram_bytes", "model_url"}
    assert (folder / "lib/libmodel_android.a").read_bytes()[:8] == b"!<arch>\n"
    assert (folder / "bundle" / ANDROID / "mlc-chat-config.json").exists()


@pytest.mark.parametrize(("name", "device"), [(IOS, "iphone"), (ANDROID, "android")])
def test_mlc_llm_package_finds_everything_by_its_own_configuration(apps: Shell, name: str, device: str):
    """As mlc_llm/interface/package.py reads it: paths from the folder, the library by the model's name."""
    folder = dist(apps, name)
    config = read(folder / "mlc-package-config.json")
    assert config["device"] == device
    (model,) = config["model_list"]
    assert (folder / model["model"] / "tensor-cache.json").is_file()
    assert (folder / model["model"] / "mlc-chat-config.json").is_file()
    assert model["bundle_weight"] is True
    assert (folder / config["model_lib_path_for_prepare_libs"][model["model_lib"]]).is_file()
    assert f"{model['model_lib']}_" in (folder / "README.md").read_text()


def test_artifacts_are_the_same_bytes_from_another_store(built: Shell, tmp_path: Path):
    (tmp_path / "work").mkdir()
    again = Shell(tmp_path / "work", tmp_path / "store")
    again.run("-m", "quant=q4f16_1", "target=android,ios", "verify=off", "-j", "2")
    for target in ("ios", "android"):
        name = f"demo-q4f16_1-{target}"
        assert bytes_of(dist(again, name)) == bytes_of(dist(built, name))


def test_a_sweep_quantizes_once_per_scheme(built: Shell):
    said = built.json("-m", "quant=q4f16_1,q4f32_1", "target=ios,android", "verify=off")
    steps = [(step["name"], step["key"]) for recipe in said["recipes"] for step in recipe["steps"]]
    assert {step["status"] for recipe in said["recipes"] for step in recipe["steps"]} == {"fresh"}
    assert len({key for name, key in steps if name.startswith("quantize")}) == 2
    assert len({key for name, key in steps if name == "lower"}) == 4


def test_an_app_of_another_system_is_refused(built: Shell):
    said = built.run("target=cpu", "package=ios_app", code=2).stderr
    assert "package=ios_app needs objects for ios; the target is of kind cpu" in said
    assert "build target=ios package=ios_app" in said
    said = built.run("target=ios", "target.library=so", code=2).stderr
    assert "target.library (on the command line): found so; a target of kind metal allows: tar" in said
    said = built.run("target=macos", "package=ios_app", code=2).stderr
    assert "for arm64-apple-macos14" in said
    said = built.run("target=android", "target.library=so", "package=android_app", code=2).stderr
    assert "its library of kind so" in said
