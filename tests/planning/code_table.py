"""The rooms and files of builder/ that may be in each step's key: what makes a result stale when it is edited.

A new entry here is a new reason for results to become stale. Patterns are fnmatch's, over paths in builder/.
"""

from __future__ import annotations

from typing import Any

_SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 3072, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 0, "eos_token_id": 1, "torch_dtype": "float16",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {  # family -> config.json
    "llama": {**_SIZES, "hidden_act": "silu"},
    "gemma2": {
        **_SIZES, "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 32, "sliding_window": 64,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    },
    "mixtral": {**_SIZES, "hidden_act": "silu", "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
RECIPES: dict[str, tuple[str, list[str]]] = {  # name -> family, overrides
    "cpu llama": ("llama", ["quant=q4f16_1", "target=cpu", "target.cpu=x86-64-v3"]),
    "cpu gemma2": ("gemma2", ["quant=q4f16_1", "target=cpu", "target.cpu=x86-64-v3"]),
    "cpu mixtral": ("mixtral", ["quant=q4f16_1", "target=cpu", "target.cpu=x86-64-v3"]),
    "cpu w8a8": ("llama", ["quant=w8a8", "target=cpu", "target.cpu=x86-64-v3"]),
    "h100": ("llama", ["quant=q4f16_1", "target=h100"]),
    "h100 ranks": ("llama", ["quant=q4f16_1", "target=h100", "target.gpus=2"]),
    "webgpu": ("llama", ["quant=q4f16_1", "target=webgpu"]),
    "ios": ("llama", ["quant=q4f16_1", "target=ios"]),
    "android": ("llama", ["quant=q4f16_1", "target=android"]),
}
_ALL = ("__init__.py", "core/*", "steps/__init__.py")  # of every step
ROOMS: dict[str, tuple[str, ...]] = {  # step -> rooms, or files where a step needs no more of a room
    "fetch": ("steps/fetch.py", "steps/ports.py", "formats/*"),
    "convert": ("steps/convert.py", "steps/ports.py", "architectures/*", "formats/*"),
    "shard": ("steps/shard.py", "steps/ports.py", "architectures/*", "formats/*", "quant/*"),
    "quantize": ("steps/quantize.py", "steps/imported.py", "steps/shard_file.py", "steps/ports.py", "architectures/*",
        "formats/*", "quant/*",
    ),
    "lower": (
        "steps/lower.py", "architectures/*", "models/*", "ops/*", "quant/__init__.py", "quant/layout.py",
        "lowering/*", "targets/*",
    ),
    "package": (
        "steps/package.py", "steps/ports.py", "architectures/*", "formats/*", "quant/__init__.py", "quant/layout.py",
        "quant/methods/__init__.py", "quant/methods/gains.py",
    ),
    "ranks": ("steps/ranks.py", "steps/ports.py", "architectures/*", "formats/*", "quant/*"),
    "cut": ("steps/cut.py", "steps/ports.py", "formats/*", "quant/*"),
    "runtime.wasm": ("steps/runtime.py", "targets/__init__.py", "targets/planned_tools.py", "targets/webgpu.py"),
    "link": (
        "steps/link.py", "steps/ports.py", "targets/__init__.py", "targets/planned_tools.py", "targets/webgpu.py",
    ),
}  # fmt: skip
ROOMS = {step: (*_ALL, *rooms) for step, rooms in ROOMS.items()}

_CPU = ("cpu llama", "cpu gemma2", "cpu mixtral", "cpu w8a8")
_CUDA = ("h100", "h100 ranks")
_LLAMA = ("cpu llama", "cpu w8a8", *_CUDA, "webgpu", "ios", "android")
ONLY: dict[str, tuple[str, ...]] = {  # files of lower -> the recipes that have them; no other has
    "architectures/llama.py": _LLAMA,
    "architectures/gemma2.py": ("cpu gemma2",),
    "architectures/mixtral.py": ("cpu mixtral",),
    "architectures/smollm3.py": (),
    "models/gated_mlp.py": (*_LLAMA, "cpu gemma2"),
    "models/experts.py": ("cpu mixtral",),
    "models/rotary.py": (),
    "ops/rotary.py": (),
    "ops/gemma.py": ("cpu gemma2",),
    "ops/experts.py": ("cpu mixtral",),
    "ops/rounded_inputs.py": ("cpu w8a8",),
    "ops/collectives.py": ("h100 ranks",),
    "ops/gated_linear.py": _CUDA,
    "lowering/schedules/cpu/*": _CPU,
    "lowering/schedules/cpu/gemma.py": ("cpu gemma2",),
    "lowering/schedules/cpu/rotary.py": (),
    "lowering/schedules/cpu/experts.py": ("cpu mixtral",),
    "lowering/schedules/cpu/rounded_inputs.py": ("cpu w8a8",),
    "lowering/schedules/cpu/integers.py": ("cpu w8a8",),
    "lowering/schedules/gpu/*": (*_CUDA, "webgpu", "ios", "android"),
    "lowering/schedules/gpu/gated_linear.py": _CUDA,
    "lowering/schedules/gpu/collectives.py": ("h100 ranks",),
    "lowering/schedules/gpu/peers.py": ("h100 ranks",),
    "lowering/backends/cpu.py": _CPU,
    "lowering/backends/gpu.py": (*_CUDA, "webgpu", "ios", "android"),
    "lowering/backends/cuda.py": _CUDA,
    "lowering/backends/dependent_launch.py": _CUDA,
    "lowering/backends/webgpu.py": ("webgpu",),
    "lowering/backends/metal.py": ("ios",),
    "lowering/backends/opencl.py": ("android",),
    "lowering/passes/fuse_gate_up.py": _CUDA,
    "lowering/passes/cuda_graphs.py": _CUDA,
    "lowering/passes/fuse_allreduce_rmsnorm.py": ("h100 ranks",),
    "lowering/passes/cut_weights.py": ("h100 ranks",),
    "lowering/dump.py": (),
    "quant/cuts.py": ("h100 ranks",),
    "formats/*": ("h100 ranks",),
    "targets/cuda*": _CUDA,
    "targets/peer_allreduce.py": _CUDA,
    "targets/flash_attention.py": _CUDA,
    "targets/apple.py": ("ios",),
    "targets/webgpu.py": (),
    "targets/link.py": (*_CPU, *_CUDA),
    "targets/tools.py": (),
}
