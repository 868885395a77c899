"""What a scheme asks of a target's arithmetic, and the schemes that are offered where the target lacks it.

Weights that are only stored as 8-bit floats or integers ask for nothing: they are turned into the scheme's dtype. What
inputs are rounded to (quant.activation) is multiplied by instructions that not every device has. A CPU has kernels for
everything. ``target.supports`` lists what devices of a target have; compute capabilities and systems narrow it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llm_build.config.choices import Folders, shipped
from llm_build.config.schema import Quant, Target
from llm_build.core.errors import Unsupported
from llm_build.planner.schemes.schemes import choices_without_rules, nearest_scheme, scheme_of, table_of_choice
from llm_build.quant.layout import Scheme, parse_scheme

_DTYPE_ASKS = {"float16": "float16", "bfloat16": "bfloat16"}
_ACTIVATION_ASKS = {"int8": "int8_dot", "e4m3": "float8", "e5m2": "float8"}
DESCRIPTIONS = {
    "float16": "float16 arithmetic", "bfloat16": "bfloat16 arithmetic", "float8": "8-bit float matrix instructions",
    "int8_dot": "int8 dot products", "subgroups": "subgroups",
}  # fmt: skip
_CUDA_SINCE = {  # compute capability, from "Feature Support per Compute Capability" of the CUDA C++ Programming Guide
    "float16": 53, "int8_dot": 61, "bfloat16": 80, "float8": 89,
}  # fmt: skip
_METAL_SINCE = {"bfloat16": {"macos": 14, "ios": 17}}  # Metal 3.1, Metal Shading Language Specification, section 2.1
_ARCH = re.compile(r"sm_(\d+)[a-z]?")
_SYSTEM = re.compile(r"(macos|ios)(\d*)")


def check(quant: Quant, target: Target, choice: str, folders: Folders) -> None:
    """Raises Unsupported when ``target`` (the choice of that name) cannot compute the scheme, with those it can.

    Needs no checkpoint.
    """
    used = _schemes_used(quant, folders)
    lacking = [(ask, why) for ask, why in _required_capabilities(used) if ask not in _capabilities_of(target)]
    if not lacking:
        return
    ask, why = lacking[0]
    choices = [f"quant={name}" for name in _suggest_schemes(used[0], target, folders)]
    newer = [arch for arch in target.arch if arch not in _too_old(ask, target)]
    offered = " or ".join(
        [*choices, f"target.arch=[{','.join(newer)}]"] if newer and _too_old(ask, target) else choices
    )
    raise Unsupported(
        f"quant={quant.name}: {why}, and target={choice} has no {DESCRIPTIONS[ask]}{_explain_missing(ask, target)}",
        f"build {offered}" if offered else "another target: build list target",
    )


def _schemes_used(quant: Quant, folders: Folders) -> list[Scheme]:
    """The scheme of a recipe without its rules, and those that its rules name."""
    table: dict[str, Any] = {k: v for k, v in scheme_of(quant).items() if k != "rules"}
    named = [rule["use"] for rule in quant.rules if isinstance(rule.get("use"), str)]
    return [parse_scheme(table), *(parse_scheme(table_of_choice(name, folders)) for name in named)]


def _required_capabilities(schemes: Iterable[Scheme]) -> list[tuple[str, str]]:
    """(capability, who asks for it) of some schemes."""
    required = []
    for index, scheme in enumerate(schemes):
        who = f"a rule's {scheme.name}" if index else "the scheme"
        if scheme.activation:
            required.append((_ACTIVATION_ASKS[scheme.activation], f"{who} multiplies inputs as {scheme.activation}"))
        if scheme.dtype in _DTYPE_ASKS:
            required.append((_DTYPE_ASKS[scheme.dtype], f"{who} has tensors of {scheme.dtype}"))
    return required


def _capabilities_of(target: Target) -> frozenset[str]:
    """What every device of a target can do."""
    if target.kind == "cpu":
        return frozenset(DESCRIPTIONS)
    return frozenset(ask for ask in target.supports if not _too_old(ask, target))


def _too_old(ask: str, target: Target) -> list[str]:
    """The architectures, or the system, of a target that are older than a capability."""
    if target.kind == "cuda":
        return [arch for arch in target.arch if _capability(arch) < _CUDA_SINCE.get(ask, 0)]
    since = _METAL_SINCE.get(ask, {})
    system = _SYSTEM.search(target.triple)
    if target.kind != "metal" or system is None or system[1] not in since:
        return []
    return [] if system[2] and int(system[2]) >= since[system[1]] else [system[0]]


def _capability(arch: str) -> int:
    """sm_90a -> 90; 0 for what is no such name, which the target's own check refuses."""
    match = _ARCH.fullmatch(arch)
    return int(match[1]) if match else 0


def _explain_missing(ask: str, target: Target) -> str:
    """What of the target is too old, and since when there is the capability."""
    old = _too_old(ask, target)
    if target.kind == "cuda" and (old or target.arch):
        return f": {', '.join(old or target.arch)}; sm_{_CUDA_SINCE[ask]} or later has them"
    if old:
        system = old[0].rstrip("0123456789")
        return f" on {old[0]}; {system} {_METAL_SINCE[ask][system]} or later has it (target.triple)"
    return ""


def _suggest_schemes(wanted: Scheme, target: Target, folders: Folders) -> list[str]:
    """Up to three choices of conf/quant that the target computes: the one most like what was wanted, the most alike
    without quantization, and the most alike to the default."""

    choices = choices_without_rules(folders)
    plain = Scheme("", "none", 0, 0, "", wanted.dtype, "", True, True)
    offered = computable_schemes(target, choices)
    nearest = [nearest_scheme(start, offered) for start in (wanted, plain, choices.get(_default_scheme(), plain))]
    return list(dict.fromkeys(name for name in nearest if name))


def computable_schemes(target: Target, choices: Mapping[str, Scheme]) -> dict[str, Scheme]:
    """Those of some schemes that the target computes."""
    return {
        name: scheme
        for name, scheme in choices.items()
        if all(ask in _capabilities_of(target) for ask, _ in _required_capabilities([scheme]))
    }


def _default_scheme() -> str:
    """The choice of quant that conf/build.yaml makes."""
    import yaml

    defaults = yaml.safe_load((shipped("conf") / "build.yaml").read_text("utf-8"))["defaults"]
    return str(next(entry["quant"] for entry in defaults if isinstance(entry, dict) and "quant" in entry))
