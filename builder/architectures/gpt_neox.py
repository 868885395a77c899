"""GPT-NeoX: GPT-NeoX-20B, Pythia, RedPajama-INCITE, and everything that calls itself model_type "gpt_neox".

Field names and defaults follow transformers' ``GPTNeoXConfig``; tensor names follow ``GPTNeoXForCausalLM``. There, the
rows of ``query_key_value`` go head by head (q, k, v of the first head, then of the second); here they are stacked as in
the other families (all q, all k, all v), and the module is called ``qkv_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.architectures import config_json as read
from llm_build.architectures import rope
from llm_build.architectures.family import Family
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.parts.decoder import Decoder, Layer, Residual
from llm_build.architectures.parts.mlp import MLP
from llm_build.architectures.parts.norms import layer_norm
from llm_build.architectures.parts.rotary import Rotary

_MODEL = "gpt_neox"
_FREE = ("rope_theta", "rope_scaling", "layer_norm_eps", "max_position_embeddings")  # a recipe may change these

_ACTIVATIONS = {  # names in config.json -> the function
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Config:
    """Sizes in elements; the first ``rotary_dim`` features of each head are rotated, ``rope_theta`` is the base."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    rotary_dim: int
    vocab_size: int
    hidden_act: str
    layer_norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    max_position_embeddings: int
    use_parallel_residual: bool
    tie_word_embeddings: bool
    attention_bias: bool

    def __post_init__(self) -> None:
        read.check_types(self)
        rope.check_scaling(self.rope_scaling)
        if self.hidden_act not in _ACTIVATIONS.values():
            read.refuse("hidden_act", self.hidden_act, "gelu, gelu_tanh")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            read.refuse("rotary_dim", self.rotary_dim, f"an even number of at most head_dim ({self.head_dim})")


def _read_fields(config_json: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a Config. transformers 4 writes rotary_pct and rotary_emb_base, 5 rope_parameters."""
    read.check_maths(_MODEL, config_json, {"hidden_act": tuple(_ACTIVATIONS)}, reads=("use_parallel_residual",))
    sizes = read.sizes({**config_json, "head_dim": None}, _MODEL)
    sizes.pop("num_key_value_heads")
    return {
        **sizes,
        **read.settings(
            config_json,
            {
                "layer_norm_eps": 1e-5,
                "max_position_embeddings": 2048,
                "use_parallel_residual": True,
                "tie_word_embeddings": False,
                "attention_bias": True,
            },
        ),
        "rotary_dim": _rotary_dim(config_json, sizes["head_dim"]),
        "hidden_act": _ACTIVATIONS[read.optional(config_json, "hidden_act", "gelu")],
        "rope_theta": rope.theta(config_json, ("rope_theta", "rotary_emb_base")),
        "rope_scaling": rope.scaling(config_json, _MODEL),
    }


def _rotary_dim(config_json: Mapping[str, Any], head_dim: int) -> int:
    share = read.as_float(rope.partial_factor(config_json, ("rotary_pct", "partial_rotary_factor"), 0.25), "float")
    read.check_type("rotary_pct", share, "float")
    return int(head_dim * share)


def _describe(config: Config) -> Decoder:
    """Attention and MLP side by side or one after the other, layer norms, biases, partly rotated heads (Black et al.
    2022, arXiv:2204.06745)."""
    hidden, heads, bias = config.hidden_size, config.num_attention_heads, config.attention_bias
    norm = layer_norm(hidden, config.layer_norm_eps)
    attention = Attention(
        hidden,
        heads,
        heads,
        config.head_dim,
        bias=bias,
        output_bias=bias,
        output="dense",
        qkv_tensors=("query_key_value",),
        by_head=True,
    )
    mlp = MLP(hidden, config.intermediate_size, config.hidden_act, up="dense_h_to_4h", down="dense_4h_to_h")
    layer = Layer(
        {"input_layernorm": norm, "post_attention_layernorm": norm, "attention": attention, "mlp": mlp},
        (Residual("attention", before="input_layernorm"), Residual("mlp", before="post_attention_layernorm")),
        parallel=config.use_parallel_residual,
    )
    return Decoder(
        vocab=config.vocab_size,
        hidden=hidden,
        layers=[layer] * config.num_hidden_layers,
        norm=norm,
        tied=config.tie_word_embeddings,
        rotary=Rotary(config.rotary_dim, config.rope_theta, config.rope_scaling),
        unused=[
            f"gpt_neox.layers.{{layer}}.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")
        ],
        stem="gpt_neox",
        embedding_name="embed_in",
        norm_name="final_layer_norm",
        head_name="embed_out",
    )


def _chat_config(config: Config) -> dict[str, Any]:
    return {"rotary_pct": config.rotary_dim / config.head_dim}


FAMILY = Family(_MODEL, Config, _read_fields, _describe, _FREE, _chat_config)
