"""Which instructions a library may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_build.core.errors import UserError
from llm_build.targets import cpu

ZEN4 = (
    "fpu sse sse2 ht syscall pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c lahf_lm abm bmi1 avx2 bmi2 avx512f \
avx512dq avx512cd avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vnni"
)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def be(text: str) -> None:
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
        cpu.host_features.cache_clear()

    yield be
    monkeypatch.undo()
    cpu.host_features.cache_clear()


def test_levels(machine):
    machine(f"processor : 0\nflags\t\t: {ZEN4}\n")
    assert cpu.describe_host() == {"cpu": "x86-64-v4", "features": ["avx512vnni", "avx512bf16", "avx512vbmi"]}
    assert cpu.resolve("host") == ("x86-64-v4", ("avx512vnni", "avx512bf16", "avx512vbmi"))
    assert cpu.resolve("host", []) == ("x86-64-v4", ())
    assert cpu.resolve("x86-64-v3") == ("x86-64-v3", ())
    assert cpu.resolve("x86-64-v3", ["avxvnni"]) == ("x86-64-v3", ("avxvnni",))
    machine("flags : " + ZEN4.replace("avx512vl", ""))
    assert cpu.describe_host()["cpu"] == "x86-64-v3"


def test_refused(machine):
    with pytest.raises(UserError, match=r"target\.cpu: found 'x86-64-v5'; allowed: host, x86-64-v2"):
        cpu.resolve("x86-64-v5")
    with pytest.raises(UserError, match="did you mean avx512vnni"):
        cpu.resolve("x86-64-v4", ["avx512_vnni"])
    machine("flags : pni cx16")
    with pytest.raises(UserError, match=r"older than x86-64-v2 .*popcnt"):
        cpu.describe_host()
    machine("Features : neon\n")
    with pytest.raises(UserError, match="has no x86 flags"):
        cpu.resolve("host")


def test_a_library_for_another_machine(machine):
    machine("flags : " + ZEN4.replace("avx512bw", ""))
    cpu.check_runs_here("x86-64-v3", (), "x86_64-linux-gnu", "demo.so")
    with pytest.raises(
        UserError, match=r"demo\.so was built for x86-64-v4; this machine is x86-64-v3 and lacks avx512bw"
    ):
        cpu.check_runs_here("x86-64-v4", (), "x86_64-linux-gnu", "demo.so")
