"""Steps are named in planner/graph and nowhere else: what others ask of a plan is data on the step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import builder

ROOT = Path(builder.__file__).parent
OWN = ("planner/graph/", "steps/")  # where steps are planned, and what they are made of
# Words that are the name of a step and of something else: a group of configuration, a verb of the command line, a part
# of a file format. The files that may spell them, none of which may mean the step.
OTHER_MEANINGS = {
    "app": (),
    "bench": ("cli/arguments.py", "cli/bench.py", "report/bench.py", "provenance/diff/report.py"),  # verb, section
    "cut": ("lowering/passes/metadata.py", "planner/resolve.py", "runtime/weights.py"),  # of a parameter
    "link": ("lowering/pipeline.py",),  # a stage of the compiler
    "package": ("app/lock_state.py", "app/request.py", "cli/generate.py", "config/", "planner/resolve.py"),  # a group
    "ranks": ("lowering/", "ops/", "report/bench.py", "runtime/"),  # how many there are
    "scales": ("formats/quantized/", "lowering/", "verification/quantized.py"),  # of a quantized tensor
    "shard": (),
    "verify": ("app/lock_state.py", "cli/doctor.py", "config/", "planner/resolve.py", "runtime/rank.py",
               "runtime/ranks.py", "verification/heldout.py"),  # a group; what an engine does with drafted tokens
    "web_page": ("config/strict.py", "planner/resolve.py", "targets/tools.py"),  # a kind of package
}  # fmt: skip


def planned_names() -> set[str]:
    """The names that planner/graph gives to steps."""
    return {
        keyword.value.value
        for file in (ROOT / "planner/graph").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Step"
        for keyword in node.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    }


def spelled(names: set[str]) -> Iterator[tuple[str, str]]:
    """(file, name) of every string of another file that is the name of a step."""
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        if not path.startswith(OWN):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and node.value in names:
                    yield path, str(node.value)


def test_no_other_file_spells_the_name_of_a_step() -> None:
    from builder.planner.graph import bench

    names = {*planned_names(), bench.NAME}
    assert {"fetch", "quantize", "lower", "verify.weights", "web_page.engine"} <= names
    wrong = {
        f"{path}: {name}" for path, name in spelled(names) if not path.startswith(OTHER_MEANINGS.get(name) or ("-",))
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_each_step_says_what_others_ask_of_it() -> None:
    from builder.config import compose
    from builder.planner import resolve
    from builder.planner.graph.graph import build_plan

    recipe = resolve.resolve(compose.compose([], None), compose.find_folders())
    plan = build_plan([recipe])
    roles = {step.role: step.name for step in plan.steps.values() if step.role}
    assert roles == {"source": "fetch", "model": "package"}
    assert [plan.steps[goal.artifact].name for goal in plan.goals] == ["package"]
    assert [step.name for step in plan.steps.values() if step.validation] == ["verify"]
    assert [step.name for step in plan.steps.values() if "linker" in step.programs] == ["lower"]
