"""What the generic shrinking does not know of single families: values of configuration fields by family or class.

A mapping goes to the sub-configuration of its name; ``text_config`` also to a text configuration that stands alone.
Names that begin with ``+`` are arguments of the configuration that are no fields of it.
"""

from __future__ import annotations

from typing import Any

from .shrinking import WINDOW

SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
MROPE: dict[str, Any] = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [2, 1, 1],
    "partial_rotary_factor": 1.0,
}
_GEMMA4: dict[str, Any] = {
    "text_config": {
        "num_hidden_layers": 3, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "+global_head_dim": 16, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8,
    },
}  # fmt: skip
_IMAGE_WORDS = {"vocabulary_map": {"<image>": 60, "IMGIMGA0Z": 59, "IMGIMGB0Z": 58}}

OVERRIDES: dict[str, dict[str, Any]] = {
    "apertus1p5": {
        "image_token_offset": 61, "audio_token_offset": 93, "text_config": {"vocab_size": 141},
    },
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1], "num_hidden_layers": 3},
    "chameleon": _IMAGE_WORDS,
    "cohere_compass": {"text_config": {
        "num_hidden_layers": 3, "layer_types": SLIDING,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in set(SLIDING)},
    }},
    "cosmos3_edge": {"text_config": {"rope_parameters": MROPE}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "+rope_theta": 10000.0}},
    "deepseek_ocr2": {"text_config": {"num_experts_per_tok": 2, "mlp_layer_types": ["dense", "sparse"]}},
    "diffusion_gemma": {"text_config": {
        **_GEMMA4["text_config"], "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16,
    }},
    "dots3_note": {"text_config": {
        "num_key_value_heads": 4, "num_hidden_layers": 4, "sliding_window": WINDOW,
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "head_dim": 12,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "+swa_num_attention_heads": 4, "+swa_num_key_value_heads": 4, "+swa_q_lora_rank": 8, "+swa_kv_lora_rank": 8,
        "+swa_head_dim": 12, "+swa_qk_nope_head_dim": 8, "+swa_v_head_dim": 8,
    }},
    "dots1": {
        "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "num_hidden_layers": 3, "layer_types": SLIDING,
    },
    "emu3": _IMAGE_WORDS,
    "ernie4_5_vl_moe": {"text_config": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]}}},
    "falcon_h1": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64},
    "gemma3n": {"text_config": {
        "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2,
        "laurel_rank": 4, "hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    }},
    "gemma4": _GEMMA4,
    "gemma4_assistant": {"text_config": {**_GEMMA4["text_config"], "hidden_size_per_layer_input": 0}},
    "gemma4_unified": _GEMMA4,
    "gemma4_unified_assistant": {"text_config": {**_GEMMA4["text_config"], "hidden_size_per_layer_input": 0}},
    "glm5_next": {"text_config": {"num_key_value_heads": 4, "index_kpool": 2}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0]],
        "vision_config": {"hidden_size": 64},
    },
    "granitemoehybrid": {"mamba_n_heads": 8, "num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl": {"text_config": {"head_dim": 8, "rope_parameters": {**MROPE, "mrope_section": [1, 1, 1, 1]}}},
    "hy_v4_vl": {"text_config": {"rope_parameters": {**MROPE, "mrope_section": [1, 1, 0]}}},
    "led": {"attention_window": 6},
    "jamba": {
        "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
        "num_hidden_layers": 3,
    },
    "lfm2": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [1]},
    "lfm2_vl": {"text_config": {
        "num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "full_attn_idxs": [1],
    }},
    "lfm2_moe": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4},
    "ministral": {"head_dim": 8, "num_hidden_layers": 3, "layer_types": SLIDING},
    "mllama": {"text_config": {"num_hidden_layers": 3, "cross_attention_layers": [1]}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [-1, -2]}},
    "nllb_moe": {"encoder_sparse_step": 2, "decoder_sparse_step": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron3_5_transcribe": {
        "text_config": {"n_groups": 2},
        "chunk_right_context": 1,
        "chunk_left_context": 1,
        "blank_token_id": 60,
    },
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}, "text_config": {"n_groups": 2}},
    "qwen4_exp": {"text_config": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 4,
        "indexer_compress_ratio": 2, "ngram_vocab_size_base": 61, "split_ngram_parts": 4,
    }},
    "longcat_flash": {"head_dim": 4},
    "mistral4": {"head_dim": 4},
    "muse_spark": {"audio_config": {"hidden_sizes": [4, 8, 16, 32]}},
    "nemotron_h": {"n_groups": 2},
    "step3p7": {"text_config": {"sliding_window": WINDOW}},
    "xmod": {"default_language": "en_XX"},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 3200},
    "reformer": {"axial_pos_embds": False},
}  # fmt: skip
OVERRIDES |= {
    family: {"text_config": {"rope_parameters": MROPE}}
    for family in (
        "glm4v", "glm46v", "glm4v_moe", "glm_ocr", "paddleocr_vl", "qwen2_vl", "qwen2_5_vl", "qwen2_5_omni", "qwen3_vl",
        "qwen3_vl_moe", "qwen3_omni_moe",
    )
}  # fmt: skip
