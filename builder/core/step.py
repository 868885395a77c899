"""What a step is: data, until the moment it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from llm_build.core.digest import canonical, sha256_hex
from llm_build.core.step_io import Json

# What a step is to those who ask a plan for it: it reads the sources; its result decides what else is planned; it
# compiles the library; it makes the model that a runtime loads.
Role = Literal["", "source", "decision", "library", "model"]
# What a step loads into its process and what then stays there: TVM with its compiler, TVM's runtime alone, torch.
Loads = Literal["", "tvm-compiler", "tvm-runtime", "torch"]


@dataclass(frozen=True, slots=True)
class Input:
    """An output of another step.

    ``output`` is an exact output name, or a prefix that ends in ``*`` for a group of outputs ("tensor/*", "*").
    When ``step`` is a fan-out template, the group is the union over its items, each named ``<item>/<output>``.
    """

    step: str
    output: str


@dataclass(frozen=True, slots=True)
class Resources:
    """What a step takes while it runs. ``custom`` names what only some machines of a cluster have ({"nvcc": 1,
    "sm_90": 1}): this machine is taken to have it, an executor of many places the step by it."""

    cpu: int = 1
    memory_bytes: int = 0
    gpu: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work.

    Identity (what the key is made of): function and the code it reaches (``code`` included), tools, params, the content
    of its inputs, the stat signatures of the files it watches. Everything else may change freely.
    """

    name: str  # for people: "lower", "quantize"; items of a fan-out are "quantize[12]"
    function: str  # "llm_build.steps.lower:run"
    params: Mapping[str, Json]
    inputs: Mapping[str, Input] = field(default_factory=dict)
    tools: tuple[str, ...] = ()  # distributions whose version is part of the identity: "apache-tvm"
    watch: Mapping[str, str] = field(default_factory=dict)  # {relative name: absolute path} of files outside the store
    expand: str = ""  # port that holds a list of items ({"items": [...]}): this step is a template, one step per item
    validation: bool = False  # verify, bench: never makes an artifact stale, a red one fails the command
    context: Mapping[str, Json] = field(default_factory=dict)  # not identity: paths, thread counts
    resources: Resources = Resources()
    # modules that the function loads by name ("llm_build.models.experts"): identity too. "a.b.* > c.d.*": for each
    # module a.b.X that is reached by import, the module c.d.X, where there is one
    code: tuple[str, ...] = ()
    role: Role = ""
    loads: Loads = ""  # not identity: which worker process can run it (executors/process_libraries.py)
    programs: tuple[str, ...] = ()  # that it runs and that a machine may not have: "nvcc", "linker"
    locked_params: tuple[str, ...] = ()  # those of ``params`` that come from this machine or a file, not from a recipe
    recipe_keys: Mapping[str, str] = field(default_factory=dict)  # {path below ``params``: how a user types it}
    id: str = field(default="", kw_only=True)  # unique in the plan; made from the content, unless it is given

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", _id_of(self))


def _id_of(step: Step) -> str:
    """Made of all that defines a step, so that equal steps of two recipes are one: "quantize-3f2a..."."""
    inputs = {port: [source.step, source.output] for port, source in step.inputs.items()}
    params, watch, context = dict(step.params), dict(step.watch), dict(step.context)
    whole = [step.function, params, inputs, watch, context, step.tools, step.code]
    return f"{step.name}-{sha256_hex(canonical(whole))[:12]}"
