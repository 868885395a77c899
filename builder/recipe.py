"""A recipe: one model, one quantization, one target, fully decided. Frozen, plain, and all the planner ever sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Model:
    """Where the weights come from and how the compiled model is sized. Lengths are in tokens; null means: decide from
    the checkpoint."""

    family: str = "auto"
    source: str | None = None
    context_window_size: int | None = None
    sliding_window_size: int | None = None
    prefill_chunk_size: int | None = None
    attention_sink_size: int | None = None
    max_batch_size: int = 4
    tensor_parallel_shards: int = 1
    conv_template: str | None = None
    allow_nonfinite: bool = False
    architecture: Mapping[str, Any] = field(default_factory=dict)  # keys of the family that the recipe sets itself


@dataclass(frozen=True, slots=True)
class Calibration:
    """The text whose activations quant.method=gptq measures; null: the one that came with the demo model."""

    text: str | None = None
    tokens: int = 16384
    window: int = 256


@dataclass(frozen=True, slots=True)
class Quant:
    """A quantization scheme (conf/quant). ``kind`` none stores ``dtype``; ``group`` stores ``bits`` per weight and one
    scale in ``dtype`` per ``group_size`` weights along the input axis; e4m3 and e5m2 store 8-bit floats and a scale per
    row. See quant/layout.py."""

    name: str = ""
    kind: str = "none"
    dtype: str = "float16"
    bits: int = 0
    group_size: int = 0
    layout: str = ""
    storage_dtype: str = ""
    quantize_embedding: bool = True
    quantize_head: bool = True
    rules: tuple[Mapping[str, Any], ...] = ()  # which parameters another scheme packs: see quant/rules.py
    max_shard_bytes: int = 32 << 20
    method: str = "rtn"
    damping: float = 0.01  # of gptq
    calibration: Calibration = Calibration()


@dataclass(frozen=True, slots=True)
class Target:
    """A platform (conf/target)."""

    kind: str = "cpu"
    triple: str = "x86_64-linux-gnu"
    cpu: str = "host"
    features: tuple[str, ...] | None = None  # null: what `cpu` implies


@dataclass(frozen=True, slots=True)
class Store:
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Dist:
    path: str = "dist"


@dataclass(frozen=True, slots=True)
class Pins:
    checkpoint: str | None = None
    tools: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the compiled library is sized for, in tokens; -1 switches the sliding window off."""

    context_window_size: int
    sliding_window_size: int
    prefill_chunk_size: int
    attention_sink_size: int
    max_batch_size: int
    tensor_parallel_shards: int


@dataclass(frozen=True, slots=True)
class Limits:
    """What verify allows: errors in units of the reference logits' spread, ``kl`` in nats, ``perplexity`` a ratio."""

    max_error: float
    rms_error: float
    kl: float
    top1: float
    perplexity: float


@dataclass(frozen=True, slots=True)
class Verify:
    """How the result is checked (conf/verify). The flat limits lie over those of the scheme in ``limits``."""

    enabled: bool
    text: str | None
    tokens: int
    window: int
    logits_bytes: int
    exact_max: float
    exact_rms: float
    max_error: float | None
    rms_error: float | None
    kl: float | None
    top1: float | None
    perplexity: float | None
    limits: Mapping[str, Limits]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was found: its files, and what its config.json says. ``root`` is not identity."""

    kind: str  # folder, hf, demo
    uri: str  # "hf://org/name@<commit>", "demo", "" for a folder (its content is its name)
    root: Path
    format: str  # safetensors, bin
    files: tuple[str, ...]  # relative to root
    config: Mapping[str, Any]
    missing: tuple[str, ...] = ()  # of an hf:// source: files still to be downloaded


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that one build is made of. ``architecture`` is the family's Config as a dict."""

    name: str
    model: Model
    quant: Quant
    target: Target
    verify: Verify
    pins: Pins
    family: str
    architecture: Mapping[str, Any]
    metadata: Metadata
    checkpoint: Checkpoint
    choices: Mapping[str, str]
    overrides: tuple[str, ...]
