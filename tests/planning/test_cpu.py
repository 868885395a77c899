"""CPUs by name: levels of x86-64, arm64, and what their libraries are."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Recipe
from llm_build.core import system
from llm_build.core.errors import StepError, UserError
from llm_build.core.plan import Plan
from llm_build.planner import resolve
from llm_build.planner.graph import graph
from llm_build.targets import cpu, link

X86_LINUX, ARM_LINUX, MACOS = "x86_64-linux-gnu", "aarch64-linux-gnu", "arm64-apple-macos"


def recipe_of(*overrides: str) -> Recipe:
    return resolve.resolve(compose.compose(list(overrides), None), find_folders())


def step_of(plan: Plan, name: str):
    return next(step for step in plan.steps.values() if step.name == name)


@pytest.fixture
def linkers(monkeypatch: pytest.MonkeyPatch):
    def only(*names: str) -> None:
        monkeypatch.setattr(link, "which", lambda name: f"/bin/{name}" if name in names else None)
        monkeypatch.setattr(link, "find_spec", lambda _name: None)

    return only


def test_arm64_is_a_library_for_linux_that_is_not_run_here(linkers):
    linkers("gcc", "ld.lld")
    recipe = recipe_of("target.cpu=arm64")
    target = recipe.target
    assert (target.cpu, target.triple, target.library) == ("arm64", "aarch64-linux-gnu", "so")
    plan = graph.build_plan([recipe])
    lower = step_of(plan, "lower").params
    assert lower["target"] == {"kind": "cpu", "triple": "aarch64-linux-gnu", "cpu": "arm64", "features": []}
    if os.uname().machine != "aarch64":
        assert step_of(plan, "verify.weights").params["kind"] == "arm64"


def test_objects_where_nothing_links(linkers):
    linkers("gcc")
    recipe = recipe_of("target.cpu=arm64")
    assert recipe.target.library == ("so" if os.uname().machine == "aarch64" else "tar")
    elsewhere = recipe_of("target.cpu=arm64", "target.triple=arm64-apple-macos14")
    plan = graph.build_plan([elsewhere])
    assert step_of(plan, "lower").params["target"]["library"] == "tar"
    assert "linker" not in step_of(plan, "lower").params
    assert step_of(plan, "package").params["library"].endswith(".tar")


def test_linkers_of_other_machines(linkers):
    foreign = "x86_64-linux-gnu" if os.uname().machine == "aarch64" else "aarch64-linux-gnu"
    linkers("gcc", "ld.lld", f"{foreign}-gcc")
    assert link.find_linker(foreign) == [f"/bin/{foreign}-gcc"]
    linkers("gcc", "ld.lld")
    assert link.find_linker(foreign) == ["/bin/ld.lld", "-m", link.EMULATIONS[foreign]]
    assert link.find_linker() == ["/bin/gcc"]
    linkers("gcc")
    with pytest.raises(StepError, match=f"no linker for {foreign} found") as caught:
        link.require_linker(foreign)
    assert "apt-get install lld" in caught.value.hint


def test_refused():
    with pytest.raises(UserError, match=r"target\.features: found avx512bf16; arm64 has none to choose"):
        recipe_of("target.cpu=arm64", "target.features=[avx512bf16]")
    with pytest.raises(UserError, match=r"target\.triple: found 'arm64-apple-macos14', which is not of x86-64-v3"):
        recipe_of("target.cpu=x86-64-v3", "target.triple=arm64-apple-macos14")
    with pytest.raises(UserError, match=r"target\.cpu: found 'arm'; allowed: host, .*, arm64; did you mean arm64\?"):
        recipe_of("target.cpu=arm")


def test_on_an_arm_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu.os, "uname", lambda: SimpleNamespace(machine="aarch64"))
    assert cpu.describe_host() == {"cpu": "arm64", "features": []}
    assert cpu.resolve("host") == ("arm64", ())
    assert cpu.runs_here("arm64", (), ARM_LINUX)
    assert not cpu.runs_here("x86-64-v2", (), X86_LINUX)
    cpu.check_runs_here("arm64", (), ARM_LINUX, "demo.so")
    with pytest.raises(UserError, match=r"demo\.so was built for x86-64-v3; this machine is aarch64"):
        cpu.check_runs_here("x86-64-v3", (), X86_LINUX, "demo.so")


def test_on_a_mac(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu.os, "uname", lambda: SimpleNamespace(machine="arm64"))
    monkeypatch.setattr(system.sys, "platform", "darwin")
    monkeypatch.setattr(link, "which", lambda name: f"/usr/bin/{name}" if name in ("clang", "ld") else None)
    here = recipe_of().target
    assert (here.cpu, here.triple, here.library) == ("arm64", MACOS, "so")
    assert recipe_of("target.cpu=arm64").target.triple == ARM_LINUX
    assert link.find_linker() == link.find_linker(MACOS) == ["/usr/bin/clang"]
    assert cpu.runs_here("arm64", (), MACOS)
    assert not cpu.runs_here("arm64", (), ARM_LINUX)
    with pytest.raises(UserError, match=r"demo\.so was built for aarch64-linux-gnu; this machine runs macOS"):
        cpu.check_runs_here("arm64", (), ARM_LINUX, "demo.so")
    monkeypatch.setattr(link, "which", lambda name: None)
    with pytest.raises(StepError, match=r"looked for cc, gcc, clang$") as refused:
        link.require_linker()
    assert refused.value.hint == "xcode-select --install"


def test_on_an_x86_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu.os, "uname", lambda: SimpleNamespace(machine="x86_64"))
    monkeypatch.setattr(cpu, "host_features", lambda: cpu.implied_features("x86-64-v3"))
    assert cpu.runs_here("x86-64-v3", (), X86_LINUX)
    assert not cpu.runs_here("x86-64-v4", (), X86_LINUX)
    assert not cpu.runs_here("arm64", (), ARM_LINUX)
    with pytest.raises(UserError, match=r"demo\.so was built for arm64; this machine is x86_64"):
        cpu.check_runs_here("arm64", (), ARM_LINUX, "demo.so")


@pytest.mark.parametrize(
    ("overrides", "message", "remedy"),
    [
        (("target.triple=aarch64-linux-gnu",), r"'aarch64-linux-gnu', which is not of x86-64", "target.cpu=arm64"),
        (
            ("target.triple=aarch64-linux-gnu", "target.cpu=x86-64-v3"),
            r"'aarch64-linux-gnu', which is not of x86-64-v3",
            "target.cpu=arm64 target.triple=aarch64-linux-gnu",
        ),
        (
            ("target.cpu=arm64", "target.triple=x86_64-linux-gnu"),
            r"'x86_64-linux-gnu', which is not of arm64",
            "target.cpu=x86-64-v3 target.triple=x86_64-linux-gnu",
        ),
    ],
)
def test_a_value_that_is_set_is_never_taken_for_a_default(overrides, message, remedy, monkeypatch):
    monkeypatch.setattr(cpu, "describe_host", lambda: {"cpu": "x86-64-v3", "features": []})
    with pytest.raises(UserError, match=message) as caught:
        recipe_of(*overrides)
    assert remedy in caught.value.hint


def test_the_values_of_defaults_may_be_set(linkers):
    linkers("gcc")
    plain = recipe_of("target.cpu=x86-64-v3").target
    assert plain == recipe_of("target.cpu=x86-64-v3", "target.triple=x86_64-linux-gnu").target
    foreign = "arm64" if os.uname().machine != "aarch64" else "x86-64-v3"
    assert recipe_of(f"target.cpu={foreign}").target.library == "tar"
    assert recipe_of(f"target.cpu={foreign}", "target.library=so").target.library == "so", "said, so not replaced"
