"""Ids of steps."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from builder.core.digest import canonical
from builder.core.step import Step


def named(step: Step) -> Step:
    """The step with an id made of all that defines it, so that equal steps of two recipes are one."""
    inputs = {port: [i.step, i.output] for port, i in step.inputs.items()}
    whole = [step.function, dict(step.params), inputs, dict(step.watch), dict(step.context), step.tools, step.code]
    return replace(step, id=f"{step.name}-{hashlib.sha256(canonical(whole)).hexdigest()[:12]}")
