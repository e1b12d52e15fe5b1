"""Tiny GGUF files, written as llama.cpp's converter writes them, from models of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "▁a", "ab", "▁ab"]
"""A sentencepiece vocabulary: special tokens, bytes, and pieces."""
BYTES = slice(3, 259)


def write(
    path: Path,
    model: Any,
    architecture: str = "llama",
    *,
    without: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
    quantised: bool = False,
) -> Path:
    """Write ``model`` to ``path``.

    Args:
        path: the file.
        model: a Llama-like model of transformers, or a Qwen2-like one.
        architecture: what the file calls it.
        without: beginnings of names of tensors to leave out.
        extra: further tensors, by name.
        metadata: further values, by name behind the architecture's (or whole, where the name has a blank in front).
        quantised: matrices as Q8_0, which needs rows of 32 weights.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // heads)
    writer.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 1e-5))
    writer.add_vocab_size(config.vocab_size)
    for name, value in (metadata or {}).items():
        key = name.strip() if name.startswith(" ") else f"{architecture}.{name}"
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](key, value)
    _tokenizer(writer, config.vocab_size)
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = bool(config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        stem, _, suffix = name.rpartition(".")
        if tied and stem == "lm_head":
            continue
        found = f"{names.get_name(stem)}.{suffix}"
        if found.startswith(without):
            continue
        weights = tensor.float().numpy()
        if architecture == "llama" and ".attn_q." in found:
            weights = _rotated(weights, heads)
        if architecture == "llama" and ".attn_k." in found:
            weights = _rotated(weights, key_heads)
        _add(writer, found, weights, quantised and weights.ndim == 2)
    for name, array in (extra or {}).items():
        _add(writer, name, np.asarray(array, dtype=np.float32), False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tiny(seed: int = 0, kind: str = "Llama", **sizes: Any) -> Any:
    """A random model whose rows are long enough to be quantised."""
    import transformers as tf

    values: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
        **sizes,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(tf, f"{kind}ForCausalLM")(getattr(tf, f"{kind}Config")(**values)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0) if parameter.dim() > 1 else parameter.add_(torch.rand_like(parameter))
    return model


def _add(writer: Any, name: str, weights: Any, quantised: bool) -> None:
    if quantised:
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quantize(weights, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weights)


def _rotated(weights: Any, heads: int) -> Any:
    """Rows in the order of llama.cpp, which rotates neighbours."""
    return (weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2)).reshape(
        weights.shape
    )


def _tokenizer(writer: Any, size: int) -> None:
    words = [*WORDS, *(f"<extra{number}>" for number in range(size - len(WORDS)))]
    kinds = [gguf.TokenType.NORMAL] * size
    kinds[0] = gguf.TokenType.UNKNOWN
    kinds[1] = kinds[2] = gguf.TokenType.CONTROL
    kinds[BYTES] = [gguf.TokenType.BYTE] * 256
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores([-float(len(WORDS) - number) for number in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{% for turn in messages %}{{ turn.content }}{% endfor %}")
