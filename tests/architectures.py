"""Tiny random models of the architectures that guidance must be right for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as tf

VOCAB = 61
PAD, BOS, EOS = 0, 1, 2
_IDS: dict[str, Any] = {
    "vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS,
    # With tied embeddings a random model repeats its last token for ever.
    "tie_word_embeddings": False,
}  # fmt: skip


def _gpt2() -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, **_IDS))


def _llama() -> Any:
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=64, **_IDS,
    )  # fmt: skip
    return tf.LlamaForCausalLM(config)


def _gemma3() -> Any:
    # A window of 5 is shorter than the prompts, so that the caches of both branches have to slide.
    config = tf.Gemma3TextConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, sliding_window=5, max_position_embeddings=64,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"], **_IDS,
    )  # fmt: skip
    return tf.Gemma3ForCausalLM(config)


def _neox() -> Any:
    config = tf.GPTNeoXConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        **_IDS,
    )  # fmt: skip
    return tf.GPTNeoXForCausalLM(config)


def _opt() -> Any:
    config = tf.OPTConfig(
        hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=64, **_IDS,
    )  # fmt: skip
    return tf.OPTForCausalLM(config)


def _bloom() -> Any:
    return tf.BloomForCausalLM(tf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, **_IDS))


def _mamba() -> Any:
    config = tf.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, conv_kernel=4, **_IDS)
    return tf.MambaForCausalLM(config)


def _jamba() -> Any:
    config = tf.JambaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, num_experts=2,
        num_experts_per_tok=1, mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, mamba_dt_rank=4,
        max_position_embeddings=64, **_IDS,
    )  # fmt: skip
    return tf.JambaForCausalLM(config)


def _t5() -> Any:
    config = tf.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=PAD, vocab_size=VOCAB,
        pad_token_id=PAD, eos_token_id=EOS, tie_word_embeddings=False,
    )  # fmt: skip
    return tf.T5ForConditionalGeneration(config)


def _bart() -> Any:
    config = tf.BartConfig(
        d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64,
        decoder_start_token_id=EOS, forced_eos_token_id=None, **_IDS,
    )  # fmt: skip
    return tf.BartForConditionalGeneration(config)


BUILDERS: dict[str, Callable[[], Any]] = {
    "gpt2": _gpt2,
    "llama": _llama,
    "gemma3": _gemma3,
    "gpt_neox": _neox,
    "opt": _opt,
    "bloom": _bloom,
    "mamba": _mamba,
    "jamba": _jamba,
    "t5": _t5,
    "bart": _bart,
}
ENCODER_DECODER = {"t5", "bart"}
RECURRENT = {"mamba", "jamba"}
# How much weights are enlarged: enough for a text that varies and depends on the prompt.
GAIN = {"bart": 8.0, "bloom": 6.0, "mamba": 2.0, "t5": 3.0, "gpt2": 5.0, "opt": 5.0}
NAMES = list(BUILDERS)


@cache
def build(name: str, seed: int = 0) -> Any:
    """The tiny model ``name`` in float32, with weights large enough that its distributions are far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BUILDERS[name]().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(GAIN.get(name, 4.0))
    # Beside the end token, random models repeat themselves: a fixed length keeps every test non-trivial.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


class Tokenizer:
    """Texts over the letters a…z and blank, one token a character; enough of a tokenizer for the engine."""

    bos_token_id: int | None = BOS
    eos_token_id = EOS
    pad_token_id = PAD
    chat_template = "roles and contents"
    letters = " abcdefghijklmnopqrstuvwxyz.:\n"

    def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
        return _Encoded([3 + self.letters.index(c) for c in text])

    def decode(self, ids: Any, skip_special_tokens: bool = True, **_: Any) -> str:
        kept = [i for i in map(int, ids) if i > EOS or not skip_special_tokens]
        return "".join(self.letters[i - 3] if 3 <= i < 3 + len(self.letters) else f"<{i}>" for i in kept)

    def batch_decode(self, rows: Any, **options: Any) -> list[str]:
        return [self.decode(row, **options) for row in rows]

    def apply_chat_template(self, messages: Any, **_: Any) -> Any:
        text = "".join(f"{turn['role']}:{turn['content']}\n" for turn in messages)
        return {"input_ids": self(text).input_ids}


class _Encoded:
    def __init__(self, ids: list[int]) -> None:
        self.input_ids = ids
