"""Fields of config.json by which other decoders change their maths.

A checkpoint may carry the ``model_type`` of a family and such a field all the same: forks do. A family that does not
read the field would build the model wrongly, so any value but those listed, which switch it off, is refused by name.
The names are those of the configuration classes in transformers that stand behind each group.
"""

from __future__ import annotations

from typing import Any

OFF: tuple[Any, ...] = (None, False)
ONE: tuple[Any, ...] = (None, 1, 1.0)
NONE_OR_ZERO: tuple[Any, ...] = (None, 0, 0.0, False)

FOREIGN: dict[str, tuple[Any, ...]] = {
    # factors: Granite, MiniCPM, Falcon-H1, Cohere, Gemma, MPT, Llama 4
    **dict.fromkeys(
        ("embedding_multiplier", "residual_multiplier", "logits_scaling", "lm_head_multiplier", "key_multiplier",
         "attention_in_multiplier", "attention_out_multiplier", "output_multiplier", "scale_emb", "logit_scale",
         "embedding_scale", "residual_scale", "qk_scale_factor", "attention_value_scale"), ONE),
    **dict.fromkeys(
        ("attention_multiplier", "scale_depth", "dim_model_base", "mlp_multipliers", "query_pre_attn_scalar",
         "softmax_scale", "attn_scale", "attn_temperature_tuning", "floor_scale"), OFF),
    **dict.fromkeys(("scale_embedding", "scale_embeddings", "scale_sqrt_depth", "mup_enabled"), OFF),
    # caps and clips: Gemma 2, OLMo, DBRX, recurrent Gemma
    **dict.fromkeys(
        ("attn_logit_softcapping", "final_logit_softcapping", "attention_logit_cap", "logits_soft_cap", "clip_qkv"),
        NONE_OR_ZERO),
    # norms: Cohere, Phi, StableLM, MPT, OLMo 2's order of norms
    **dict.fromkeys(("use_qk_norm", "qk_layernorm", "qk_ln", "qk_norm", "use_sandwich_norm", "use_post_norm"), OFF),
    # blocks: Falcon, GPT-J, StableLM
    **dict.fromkeys(("parallel_attn", "use_parallel_residual", "new_decoder_architecture", "multi_query"), OFF),
    **dict.fromkeys(("use_qkv_bias", "qkv_bias", "use_bias", "lm_head_bias", "attention_out_bias"), OFF),
    **dict.fromkeys(("use_attention_gate", "attn_output_gate"), OFF),
    # positions: MPT, Falcon, Llama 4, SmolLM3, DeepSeek
    **dict.fromkeys(("alibi", "use_alibi", "rope_interleave", "rope_interleaved", "use_mrope"), OFF),
    **dict.fromkeys(("no_rope_layers", "no_rope_layer_interval", "layer_rope_theta"), (None, [])),
    "rope_local_base_freq": (None,),
    "position_embedding_type": (None, "rope", "rotary"),
    # which tokens are seen: Llama 4, Gemma 3, Mistral forks
    "attention_chunk_size": NONE_OR_ZERO,
    "attention_window_size": NONE_OR_ZERO,
    "use_bidirectional_attention": OFF,
    # latent attention: DeepSeek V2 and V3
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), (None,)),
    # experts
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "n_shared_experts",
         "shared_expert_intermediate_size"), NONE_OR_ZERO),
}  # fmt: skip
