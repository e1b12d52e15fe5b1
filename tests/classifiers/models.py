"""Tiny random classifiers of several architectures, and their tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers as tf

VOCAB = 61
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_labels": 3,
}
_LLAMA: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_NEOX: dict[str, Any] = {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"}


def _build(name: str) -> Any:
    if name == "llama":
        return tf.LlamaForSequenceClassification(tf.LlamaConfig(**_LLAMA, **_COMMON))
    if name == "qwen2":
        return tf.Qwen2ForSequenceClassification(tf.Qwen2Config(**_LLAMA, **_COMMON))
    if name == "gpt2":
        return tf.GPT2ForSequenceClassification(
            tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **_COMMON)
        )
    if name == "gpt_neox":
        return tf.GPTNeoXForSequenceClassification(tf.GPTNeoXConfig(**_NEOX, **_COMMON))
    if name == "opt":
        config = tf.OPTConfig(
            hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
            max_position_embeddings=64, **_COMMON,
        )  # fmt: skip
        return tf.OPTForSequenceClassification(config)
    if name == "bloom":
        return tf.BloomForSequenceClassification(tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **_COMMON))
    if name == "gemma3":
        config = tf.Gemma3TextConfig(
            **{**_LLAMA, "num_hidden_layers": 3}, head_dim=8, sliding_window=5,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"], **_COMMON,
        )  # fmt: skip
        return tf.Gemma3TextForSequenceClassification(config)
    raise KeyError(name)


CAUSAL = ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "bloom", "gemma3"]
SHARING = {"llama", "qwen2", "gpt2", "gpt_neox", "opt"}


@cache
def causal(name: str) -> Any:
    """A sequence-classification model whose distributions depend on what it reads."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = _build(name).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    return model


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bad", "good", "film", "the", "is", "not", "very", "."]


def bert_tokenizer(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tf.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=12)


def bert_config(**options: Any) -> Any:
    return tf.BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=12, **options,
    )  # fmt: skip


def bert(**options: Any) -> Any:
    """A tiny BERT classifier."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = tf.BertForSequenceClassification(bert_config(**options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8.0)
    return model
