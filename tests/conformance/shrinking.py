"""From the default configuration of a model to one of the same kind that is tiny."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig

VOCAB = 61
PAD, BOS, EOS = 0, 1, 2
WIDTH, HEADS, HEAD = 32, 4, 8
"""Width of the model, number of heads and width of a head."""
WINDOW = 5
"""Length of sliding windows: shorter than the prompts."""
POSITIONS = 96

# The first pattern that matches the whole name of a field gives its small value; larger values alone are replaced.
RULES: list[tuple[str, int]] = [(re.sub(r"\s+", "", pattern), value) for pattern, value in [
    (r"type_vocab_size|additional_vocab_size", 2),
    (r".*vocab_size(_per_layer_input)?|.*_hash_byte_group_vocab|ngram_vocab_size_base", VOCAB),
    (r".*(num_kv_heads|kv_n_heads)", 2),
    (r"linear_num_key_heads", 2),
    (r"index_n_heads", 8),  # with few, many scores are zero, and which of equals is chosen is chance
    (r".*(attention_heads|num_heads|n_heads?|attn_heads|linear_num_value_heads|resampler_heads)", HEADS),
    (r"qk_rope_head_dim", HEAD // 2),
    (r".*(head_dim|dim_head|d_kv|attention_head_size|kv_channels)", HEAD),
    (r"rotary_dim", HEAD // 2),
    (r"(expert_ffn_hidden_size|.*moe_intermediate_size|.*shared_experts?_intermediate_size|share_expert_dim)", 16),
    (r".*(intermediate_size(_mlp)?|ffn_dim|d_ff|dff|dim_ff|mlp_dim|feed_forward_size|ffn_hidden_size)", 48),
    (r".*(lora_rank|_rank|lowrank)", 8),
    (r".*(num_hidden_layers|n_layers?|num_layers|(en|de)coder_layers|_layers|depth|num_blocks)|layers", 2),
    (r"(num_kv_shared_layers|max_window_layers|first_k_dense_replace)", 1),
    (r".*(n_routed_experts|num_experts|num_local_experts|zero_expert_num)", 4),
    (r".*(num_experts_per_tok|moe_topk|top_k_experts)|moe_k", 2),
    (r"(n_group|topk_group|index_topk_blocks)", 1),
    (r".*(sliding_window(_size)?|attention_window(_size)?|local_attention|local_attention_window_len)", WINDOW),
    (r"attention_chunk_size", 6),
    (r"context_length", 96),
    (r"original_max_position_embeddings", 80),
    (r"relative_attention_num_buckets|num_buckets|position_bias_num_buckets", 8),
    (r"relative.*max_distance|position_bias_max_distance", 16),
    (r".*(max_position_embeddings|n_positions|n_ctx|max_seq_len|max_(source|target)_positions|seq_len)", POSITIONS),
    (r"max_(en|de)coder_position_embeddings|max_pos_emb|position_embedding_size", POSITIONS),
    (r"(state_size|mamba_d_state|ssm_state_size)", 8),
    (r"(.*chunk_size|.*block_size|.*attn_chunk_length|local_radius)", 4),
    (r"index_topk", 4),
    (r"(image_size|crop_size|max_image_size|min_image_size|resolution)", 16),
    (r"patch_size", 4),
    (r".*hidden_sizes?|d_model|n_embd|emb_dim|.*embed_dim|embedding_size|hidden_dim|.*output_dims?", WIDTH),
    (r".*(_dim|_size|_width|_channels|_features|_latents|_latent|_tokens|_bins|length)", WIDTH),
]]  # fmt: skip

IDS = {
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
    "sep_token_id": EOS,
    "cls_token_id": BOS,
    "forced_eos_token_id": None,
    "forced_bos_token_id": None,
    # With tied embeddings a random model repeats its last token for ever.
    "tie_word_embeddings": False,
}


def shrink(
    default: PreTrainedConfig, overrides: Mapping[str, Any] | None = None, exact: Mapping[str, Any] | None = None
) -> Any:
    """A configuration of the kind of ``default`` with two or more layers of width 32, every kind of layer among them.

    Args:
        overrides: values of fields by name, at every depth; a nested mapping goes to the sub-configuration of its name.
        exact: values of fields of this configuration alone.
    """
    declared = {f.name: f for f in dataclasses.fields(default) if f.init and not f.name.startswith("_")}
    own = {**(overrides or {}), **(exact or {})}
    if "text_config" not in declared:
        own = {**own, **own.pop("text_config", {})}
    everywhere = {name: value for name, value in (overrides or {}).items() if not isinstance(value, Mapping)}
    values: dict[str, Any] = {name[1:]: value for name, value in own.items() if name.startswith("+")}
    layers = _layers(default, own)
    for name in declared:
        value = _value(default, name)
        if isinstance(value, PreTrainedConfig):
            inner = own.get(name)
            nested = {**everywhere, **inner} if isinstance(inner, Mapping) else everywhere
            values[name] = shrink(value, nested).to_dict()
        elif name in own:
            values[name] = own[name]
        elif name in IDS:
            values[name] = IDS[name] if value is not None or name.startswith("tie") else None
        elif (
            layers is not None
            and isinstance(value, (list, tuple))
            and len(value) == layers.default
            and layers.default > 3
        ):
            values[name] = [value[i] for i in layers.kept]
        elif name.endswith("num_key_value_heads") and isinstance(value, int):
            heads = (
                _value(default, name.replace("key_value", "attention"))
                if name.replace("key_value", "attention") in declared
                else None
            )
            values[name] = {heads: HEADS, 1: 1}.get(value, HEADS // 2) if declared[name].default is not None else None
        else:
            values[name] = _small(name, value, declared[name].default)
        if layers is not None and name == layers.field and name not in own:
            values[name] = len(layers.kept)
    common = {f.name for f in dataclasses.fields(PreTrainedConfig)} - set(IDS) - set(own)
    kwargs = {name: value for name, value in values.items() if name not in common}
    return type(default)(**kwargs)


def _value(default: Any, name: str) -> Any:
    declared = next(f.default for f in dataclasses.fields(default) if f.name == name)
    try:
        value = getattr(default, name, None)
    except RuntimeError:  # it differs from layer to layer
        return declared
    # "auto", or one number that was made a list.
    return declared if isinstance(declared, (str, int)) and type(declared) is not type(value) else value


@dataclasses.dataclass
class _Layers:
    field: str
    default: int
    kept: list[int]


def _layers(default: Any, own: Mapping[str, Any]) -> _Layers | None:
    """Which layers stay: at least two, and each kind that per-layer lists tell apart."""
    names = {f.name for f in dataclasses.fields(default)}
    field = next((n for n in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if n in names), None)
    if field is None or field in own:
        return None
    count = _value(default, field)
    if not isinstance(count, int):
        return None
    lists = [
        value
        for f in dataclasses.fields(default)
        if isinstance(value := _value(default, f.name), (list, tuple)) and len(value) == count and count > 3
    ]
    kept: list[int] = []
    seen: set[str] = set()
    for layer in range(count):
        kind = repr([values[layer] for values in lists])
        if kind not in seen and len(kept) < 6:
            seen.add(kind)
            kept.append(layer)
    for layer in range(count):
        if len(kept) < min(2, count) and layer not in kept:
            kept.append(layer)
    return _Layers(field, count, sorted(kept))


def _small(name: str, value: Any, declared: Any) -> Any:
    if declared is None:
        return None  # derived from others
    if name.endswith(("_token_id", "_token_index", "_ids")) or isinstance(value, bool):
        return value
    for pattern, small in RULES:
        if re.fullmatch(pattern, name):
            if isinstance(value, int):
                return min(value, small)
            if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
                return [min(v, small) for v in value]
            return value
    return value
