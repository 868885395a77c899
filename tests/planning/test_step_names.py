"""Steps are named in planner/graph and nowhere else: what others ask of a plan is data on the step."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import llm_build

ROOT = Path(llm_build.__file__).parent
OWN = ("planner/graph/", "steps/")  # where steps are planned, and what they are made of
# Words that are the name of a step and of something else, and where they may be spelled in that other sense: a group of
# configuration, a verb of the command line, a section of a document, a part of a file format, a stage of a compiler.
OTHER_MEANINGS = {
    "bench": ("app/", "cli/", "provenance/diff/", "report/"),
    "cut": ("formats/", "lowering/", "planner/", "runtime/"),
    "link": ("lowering/",),
    "lower": ("cli/",),
    "package": ("app/", "cli/", "config/", "planner/", "provenance/"),
    "ranks": ("lowering/", "ops/", "report/", "runtime/"),
    "scales": ("formats/", "lowering/", "verification/"),
    "verify": ("app/", "cli/", "config/", "planner/", "provenance/", "runtime/", "verification/"),
    "web_page": ("config/", "planner/", "targets/"),
}


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


def compared(names: set[str]) -> Iterator[tuple[str, str]]:
    """(file, name) of every ``x.name`` or ``x["name"]`` that is compared with the name of a step."""
    for file in sorted(ROOT.rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and ast.unparse(node.left).endswith((".name", "['name']")):
                words = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
                yield from ((path, str(word)) for word in words if word in names)


def test_no_other_file_spells_the_name_of_a_step() -> None:
    from llm_build.planner.graph import bench, verify

    names = {*planned_names(), bench.NAME}
    assert {verify.DEQUANTIZED, *verify.VALIDATIONS} <= names
    assert {"fetch", "quantize", "lower", "verify.weights", "web_page.engine"} <= names
    wrong = {(path, name) for path, name in spelled(names) if not path.startswith(OTHER_MEANINGS.get(name, ("-",)))}
    wrong |= set(compared(names))
    assert not wrong, "\n".join(f"{path}: {name}" for path, name in sorted(wrong))


def test_each_step_says_what_others_ask_of_it() -> None:
    from llm_build.config import compose
    from llm_build.planner import resolve
    from llm_build.planner.graph.graph import build_plan

    recipe = resolve.resolve(compose.compose([], None), compose.find_folders())
    plan = build_plan([recipe])
    roles = {step.role: step.name for step in plan.steps.values() if step.role}
    assert roles == {"source": "fetch", "library": "lower", "model": "package"}
    assert [plan.steps[goal.artifact].name for goal in plan.goals] == ["package"]
    assert [step.name for step in plan.steps.values() if step.validation] == ["verify"]
    assert [step.name for step in plan.steps.values() if "linker" in step.programs] == ["lower"]
