"""A recipe: one model, one quantization, one target, fully decided. Frozen, plain, and all the planner ever sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_build.config.strict import as_plain_data


@dataclass(frozen=True, slots=True)
class Model:
    """Where the weights come from and how the compiled model is sized. Lengths are in tokens; null means: decide from
    the checkpoint; "auto": the largest that the target's memory has room for."""

    family: str = "auto"
    source: str | None = None
    context_window_size: int | str | None = None
    sliding_window_size: int | str | None = None
    prefill_chunk_size: int | str | None = None
    attention_sink_size: int | None = None
    max_batch_size: int | str = 4
    tensor_parallel_shards: int | None = None  # null: target.gpus
    conv_template: str | None = None
    allow_nonfinite: bool = False
    architecture: Mapping[str, Any] = field(default_factory=dict)  # keys of the family that the recipe sets itself


@dataclass(frozen=True, slots=True)
class Calibration:
    """The text whose activations quant.method=awq and gptq measure; null: the one that came with the demo model."""

    text: str | None = None
    tokens: int = 16384
    window: int = 256


@dataclass(frozen=True, slots=True)
class Quant:
    """A quantization scheme (conf/quant). ``kind`` none stores ``dtype``; ``group`` stores ``bits`` per weight and one
    scale in ``dtype`` per ``group_size`` weights along the input axis; int8, e4m3 and e5m2 store bytes and a scale per
    row. See quant/layout.py."""

    name: str = ""  # name of the scheme
    kind: str = "none"  # none, group (integers), int8, e4m3, e5m2 (8-bit floats)
    dtype: str = "float16"  # type of scales and of what is not packed
    bits: int = 0  # bits per weight; 0: not packed
    group_size: int = 0  # weights that share a scale; 0: a whole row
    layout: str = ""  # NK: output rows first, as the checkpoint; KN: transposed
    storage_dtype: str = ""  # word that packed values are stored in
    quantize_embedding: bool = True  # pack the embedding, too
    quantize_head: bool = True  # pack the head, too
    activation: str = ""  # what inputs of packed matrices are rounded to; "": they are not
    activation_scale: str = ""  # scale of rounded inputs; dynamic: each token has its own
    scale_per: str = "group"  # one scale for each group, or one for a matrix of 8-bit floats
    zero_point: bool = False  # groups: store the value that stands for zero beside each scale
    rules: tuple[Mapping[str, Any], ...] = ()  # parameters that another scheme packs: builder/quant/rules.py
    max_shard_bytes: int = 32 << 20
    method: str = "auto"
    packing: Mapping[str, Any] = field(default_factory=dict)  # method imported: what the checkpoint says of itself
    damping: float = 0.01  # of gptq
    calibration: Calibration = Calibration()
    budget: float | None = None  # stored bits per weight, for which the rules are picked: see budget.py
    candidates: tuple[str, ...] = ()  # schemes that the budget picks from
    sensitivity_tokens: int = 512  # of the calibration text


@dataclass(frozen=True, slots=True)
class Budget:
    """quant.budget with its candidates spelled out. ``plain``: the candidate that the result must not be worse than."""

    bits: float
    candidates: Mapping[str, Mapping[str, Any]]
    plain: str


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """What kernels must stay below; 0: no limit."""

    max_threads_per_block: int = 0  # threads of a block
    max_shared_memory_bytes: int = 0  # shared memory of a block
    max_binding_bytes: int = 0  # size of one tensor
    max_storage_buffers: int = 0  # buffers of one kernel


@dataclass(frozen=True, slots=True)
class Target:
    """A platform (conf/target). ``triple``, ``cpu`` and ``features`` are of the host code."""

    kind: str = "cpu"  # platform
    triple: str = "x86_64-linux-gnu"  # LLVM triple of the host code
    cpu: str = "host"  # CPU of the host code: host, x86-64-v2, x86-64-v3, x86-64-v4, arm64
    features: tuple[str, ...] | None = None  # CPU features; null: those of the CPU
    arch: tuple[str, ...] = ()  # cuda: architectures, such as sm_80, sm_90a; host: this machine's
    library: str = "so"  # suffix of the library's file name
    memory_bytes: int | None = None  # memory of the device, each of several; null: not checked
    runtime_bytes: int = 0  # memory that the runtime takes before there is a model
    max_sequences: int = 0  # sequences that its runtimes keep at once; 0: model.max_batch_size
    gpus: int | str | None = None  # that one model is spread over (cpu: processes); null: 1; auto: this machine's
    supports: tuple[str, ...] = ()  # what it computes: float16, bfloat16, float8, int8_dot, subgroups
    limits: DeviceLimits = DeviceLimits()  # limits of its kernels
    refused: str = ""  # why nothing can be built for this target


@dataclass(frozen=True, slots=True)
class Package:
    """What the output folder holds (conf/package)."""

    kind: str = "mlc"  # what is written: an artifact, a page or what an app project includes
    sharding: str = "presharded"  # of several GPUs: presharded (each has its files), whole (they cut while they load)


@dataclass(frozen=True, slots=True)
class Store:
    path: str | None = None
    remote: str | None = None  # an fsspec URL: a store that is shared
    mode: str = "write"
    trust: str = "signed"
    remote_options: Mapping[str, Any] = field(default_factory=dict)
    transfers: int = 8
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Dist:
    path: str = "dist"
    replace: bool = False  # a folder that holds another recipe's artifact


@dataclass(frozen=True, slots=True)
class Sweep:
    """Of many recipes. Never part of any identity."""

    exclude: tuple[Mapping[str, Any], ...] = ()  # rules: choices or keys -> patterns (builder/config/sweeps/exclude.py)
    objective: str | None = None


@dataclass(frozen=True, slots=True)
class Executor:
    """Who runs the steps. Never part of any identity."""

    kind: str = "local"  # worker processes here, or tasks on a Ray cluster
    address: str = "local"  # of a Ray cluster: local starts one here; auto, host:port, ray://host:port


LOCAL = Executor()


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who signs build.json: an ed25519 private key, PEM. Never part of any identity."""

    key: str | None = None


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
class Exact:
    """What verify allows between the library and the dequantized weights where inputs are rounded."""

    max_error: float
    rms_error: float


@dataclass(frozen=True, slots=True)
class Verify:
    """How the result is checked (conf/verify). A limit on cost that is None is no limit."""

    enabled: bool
    text: str | None
    tokens: int
    window: int
    logits_bytes: int
    exact_max: float
    exact_rms: float  # root mean square of the same
    exact_rounded: Mapping[str, Exact]  # by quant.activation
    max_error: float | None
    rms_error: float | None
    kl: float | None
    top1: float | None
    perplexity: float | None


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
    budget: Budget | None = None
    undecided: bool = False  # the rules of the budget are still to be picked: only the first phase can be planned
    package: Package = Package()
    label: str = ""  # what tells it from other recipes whose artifact its folder may hold
    scheme_label: str = ""  # the scheme, with the keys of its format that the choice does not have


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """What build.json says was asked for: no path of this machine, so that two folders give the same bytes."""
    quant = as_plain_data(recipe.quant)
    if text := recipe.quant.calibration.text:
        quant["calibration"]["text"] = Path(text).name
    return {
        "name": recipe.name,
        "choices": dict(recipe.choices),
        "model": {**as_plain_data(recipe.model), "source": recipe.checkpoint.uri or "folder"},
        "quant": quant,
        "target": as_plain_data(recipe.target),
        "package": as_plain_data(recipe.package),
        "metadata": as_plain_data(recipe.metadata),
        "architecture": dict(recipe.architecture),
        "verify": {k: v for k, v in as_plain_data(recipe.verify).items() if k != "text"},
        "pins": as_plain_data(recipe.pins),
    }
