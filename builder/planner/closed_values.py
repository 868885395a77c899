"""What a key may be set to, where that is a closed set of words: for completion."""

from __future__ import annotations

from llm_build import architectures
from llm_build.config.keys import allowed_words
from llm_build.formats.chatconfig import CONV_TEMPLATES
from llm_build.targets import cpu


def closed_values(key: str) -> tuple[str, ...]:
    """The words of a dotted key, () where it takes anything. What its own module checks is asked there."""
    elsewhere = {
        "model.family": ("auto", *sorted(architectures.FAMILIES)),
        "model.conv_template": tuple(CONV_TEMPLATES),
        "target.cpu": (cpu.HOST, *cpu.LEVELS, cpu.ARM),
    }
    return elsewhere.get(key) or allowed_words(key)
