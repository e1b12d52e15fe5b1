"""Tiny models of unusual configurations, with weights that make texts depend on their prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tf

from ..architectures import Tokenizer

VOCAB = 40
PAD, BOS, EOS = 0, 1, 2
FORBIDDEN = 36
"""The first of the tokens that masked models forbid."""
SWITCH = 12
"""Length after which rotary embeddings of some models change."""
WINDOW = 4
_IDS: dict[str, Any] = {
    "vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "tie_word_embeddings": False,
}  # fmt: skip
_LLAMA: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, **_IDS,
}  # fmt: skip
_BART: dict[str, Any] = {
    "d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.0,
    "attention_dropout": 0.0, "activation_dropout": 0.0, "forced_eos_token_id": None, **_IDS,
}  # fmt: skip
_SLIDING = ["sliding_attention", "full_attention"]
_LONG_ROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": SWITCH,
    "short_factor": [1.0] * 4, "long_factor": [8.0] * 4,
}  # fmt: skip
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}


def _gemma3(**others: Any) -> Any:
    config = tf.Gemma3TextConfig(**_LLAMA, head_dim=8, sliding_window=WINDOW, layer_types=_SLIDING, **others)
    return tf.Gemma3ForCausalLM(config)


def _phi3() -> Any:
    config = tf.Phi3Config(
        **_LLAMA, original_max_position_embeddings=SWITCH, rope_parameters=_LONG_ROPE, attention_dropout=0.0
    )
    return tf.Phi3ForCausalLM(config)


def _gpt2() -> Any:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **dropout, **_IDS))


def _gpt_neo() -> Any:
    config = tf.GPTNeoConfig(
        hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]], window_size=WINDOW,
        max_position_embeddings=64, attention_dropout=0.0, embed_dropout=0.0, resid_dropout=0.0, **_IDS,
    )  # fmt: skip
    return tf.GPTNeoForCausalLM(config)


def _roformer() -> Any:
    config = tf.RoFormerConfig(
        hidden_size=16, embedding_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **_IDS,
    )  # fmt: skip
    return tf.RoFormerForCausalLM(config)


def _recurrent_gemma() -> Any:
    config = tf.RecurrentGemmaConfig(
        hidden_size=16, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, lru_width=16,
        attention_window_size=16, **_IDS,
    )  # fmt: skip
    return tf.RecurrentGemmaForCausalLM(config)


def _opt() -> Any:
    config = tf.OPTConfig(
        hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16, dropout=0.0,
        max_position_embeddings=64, **_IDS,
    )  # fmt: skip
    return tf.OPTForCausalLM(config)


def _t5() -> Any:
    config = tf.T5Config(
        d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, decoder_start_token_id=PAD, vocab_size=VOCAB,
        pad_token_id=PAD, eos_token_id=EOS, dropout_rate=0.0, tie_word_embeddings=False,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config)


_NEOX: dict[str, Any] = {name: value for name, value in _LLAMA.items() if name != "num_key_value_heads"}
BUILDERS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA)),
    "llama-dynamic": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(**{**_LLAMA, "max_position_embeddings": SWITCH, "rope_parameters": _DYNAMIC})
    ),
    "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**_LLAMA, sliding_window=WINDOW)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**_LLAMA, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "gemma3": _gemma3,
    "gemma3-bidirectional": lambda: _gemma3(use_bidirectional_attention=True),
    "phi3-longrope": _phi3,
    "gpt2": _gpt2,
    "gpt_neo": _gpt_neo,
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_NEOX)),
    "bloom": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.0, attention_dropout=0.0, **_IDS)
    ),
    "falcon-alibi": lambda: tf.FalconForCausalLM(
        tf.FalconConfig(
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            alibi=True,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            **_IDS,
        )
    ),
    "opt": _opt,
    "roformer": _roformer,
    "recurrent_gemma": _recurrent_gemma,
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, conv_kernel=4, **_IDS)
    ),
    "bart-decoder": lambda: tf.BartForCausalLM(tf.BartConfig(**_BART)),
    "t5": _t5,
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(decoder_start_token_id=EOS, **_BART)),
}
ENCODER_DECODER = {"t5", "bart"}
RECURRENT = {"mamba", "recurrent_gemma"}
SWITCHES = {"phi3-longrope", "llama-dynamic"}
_GAIN = {"bart": 8.0, "bart-decoder": 6.0, "bloom": 6.0, "mamba": 2.0, "t5": 3.0, "recurrent_gemma": 6.0}


class _Masked(torch.nn.Module):
    """A head that forbids the last tokens of the vocabulary."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.head = head
        self.weight = head.weight
        self.bias = head.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        logits = self.head(hidden).clone()
        logits[..., FORBIDDEN:] = -torch.inf
        return logits


@cache
def _built(name: str, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[name]().float().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(_GAIN.get(name, 4.0))
            ids = torch.tensor([[BOS, 5, 33, 7, 20]])
            start = {"decoder_input_ids": torch.tensor([[EOS, 17, 9]])} if name in ENCODER_DECODER else {}
            head = model.get_output_embeddings()
            if head is not None and head.weight is not model.get_input_embeddings().weight:
                deviation = float(model(input_ids=ids, **start).logits[0, -1].std())
                head.weight.mul_(1.5 / max(deviation, 1e-6))
    return model


@cache
def build(name: str, dtype: str = "float32", masked: bool = False, pad_is_bos: bool = False) -> Any:
    """The tiny model ``name``; the same object for the same arguments."""
    return fresh(name, dtype, masked, pad_is_bos)


def fresh(name: str, dtype: str = "float32", masked: bool = False, pad_is_bos: bool = False) -> Any:
    """A new copy, about which nothing is known yet."""
    model = copy.deepcopy(_built(name, 0))
    if masked:
        model.set_output_embeddings(_Masked(model.get_output_embeddings()))
    model = model.to(getattr(torch, dtype))
    ids: dict[str, Any] = {"pad_token_id": BOS if pad_is_bos else PAD, "bos_token_id": BOS}
    if name in ENCODER_DECODER:
        ids["decoder_start_token_id"] = model.config.decoder_start_token_id
    model.generation_config = tf.GenerationConfig(**ids)
    return model


@cache
def amateur(dtype: str = "float32") -> Any:
    """Another model with the same vocabulary."""
    return copy.deepcopy(_built("llama", 1)).to(getattr(torch, dtype))


class Letters(Tokenizer):
    """The tokenizer of these models."""

    def __init__(self, pad_is_bos: bool = False) -> None:
        self.pad_token_id = BOS if pad_is_bos else PAD
