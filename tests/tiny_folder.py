"""A model folder as a user has one: a tiny random Llama and a real tokenizer with a chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as tf

POSITIONS = 96
_LETTERS = [chr(code) for code in range(32, 127)] + ["\n", "ü", "é"]
_TEMPLATE = (
    "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_tokenizer(chat: bool = True) -> Any:
    """One token a character; unknown characters share one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *_LETTERS])}
    inner = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Fuse()
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    if chat:
        tokenizer.chat_template = _TEMPLATE
    return tokenizer


def make_model(vocabulary: int, seed: int = 0) -> Any:
    """A model whose text varies and depends on its prompt."""
    config = tf.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    # A fixed length keeps tests from ending early by chance.
    model.generation_config.eos_token_id = None
    return model


def save(folder: Path, *, chat: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """Write model and tokenizer into ``folder``."""
    tokenizer = make_tokenizer(chat)
    make_model(len(tokenizer)).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
