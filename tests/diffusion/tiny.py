"""Tiny random masked diffusion models of each kind, with the interfaces of the real ones."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedTokenizerFast,
)

from textguide.forward import caches

PAD, MASK, EOS, CLS, SEP = range(5)
LETTERS = "abcdefghijkl"
VOCABULARY = 5 + len(LETTERS)
KINDS = ("bert", "albert", "modernbert", "llada", "dream")


def tokenizer(framed: bool = False, letters: str = LETTERS) -> PreTrainedTokenizerFast:
    tokens = ["[PAD]", "[MASK]", "[EOS]", "[CLS]", "[SEP]", *letters]
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    inner.decoder = decoders.Fuse()
    names = {"pad_token": "[PAD]", "mask_token": "[MASK]"}
    if framed:
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
        names |= {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    else:
        names["eos_token"] = "[EOS]"
    return PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **names)


class Opened(torch.nn.Module):
    """A decoder whose attention is opened, as LLaDA's: everything, or blocks that see what is in front of them."""

    def __init__(self, vocabulary: int, block: int | None = None, start: int = 0) -> None:
        super().__init__()
        self.config = SimpleNamespace(model_type="llada", vocab_size=vocabulary, mask_token_id=MASK, is_decoder=True)
        self.inner = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.6,
                attn_implementation="eager",
            )
        )  # fmt: skip
        self.block, self.start = block, start

    def forward(
        self, input_ids: Tensor, attention_mask: Any = None, past_key_values: Any = None, use_cache: bool = False,
        position_ids: Tensor | None = None,
    ) -> Any:  # fmt: skip
        done = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = done + input_ids.shape[1]
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            seen = attention_mask[:, None, None, :].bool()
        elif isinstance(attention_mask, Tensor):
            seen = attention_mask.bool()
        else:
            seen = torch.ones(1, 1, 1, length, dtype=torch.bool)
        seen = seen.expand(len(input_ids), 1, input_ids.shape[1], length)
        places = torch.arange(done, length)[None].expand(len(input_ids), -1) if position_ids is None else position_ids
        if self.block is not None:
            every = torch.cat([torch.arange(done)[None].expand(len(input_ids), -1), places], dim=1)
            number = torch.where(every < self.start, -1, (every - self.start) // self.block)
            seen = seen & (number[:, None, :] <= number[:, done:, None])[:, None]
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        cache = {caches.cache_argument(self.inner): past_key_values} if past_key_values is not None else {}
        out = self.inner(input_ids=input_ids, attention_mask=bias, position_ids=places, use_cache=use_cache, **cache)
        past = out["cache"] if "cache" in out else out.get("past_key_values")
        return SimpleNamespace(logits=out.logits, past_key_values=past)


class LLaDAModelLM(Opened):
    """LLaDA's interface: logits in place, a two-dimensional mask."""


class DreamModel(Opened):
    """Dream's interface: logits shifted by one, a square mask or the word ``full``."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__(vocabulary)
        self.config.model_type = "Dream"

    def forward(
        self, input_ids: Tensor, attention_mask: Any = "full", past_key_values: Any = None, use_cache: bool = False,
        position_ids: Tensor | None = None,
    ) -> Any:  # fmt: skip
        assert attention_mask == "full" or attention_mask.dim() == 4
        return super().forward(input_ids, attention_mask, past_key_values, use_cache, position_ids)


@lru_cache(maxsize=16)
def build(kind: str, vocabulary: int = VOCABULARY, seed: int = 0) -> tuple[Any, Any]:
    """A random model of this kind with sharp distributions, and its tokenizer."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.6, "pad_token_id": PAD,
        "attn_implementation": "eager",
    }  # fmt: skip
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model: Any
    if kind == "bert":
        model = BertForMaskedLM(BertConfig(**common, **no_dropout))
    elif kind == "albert":
        model = AlbertForMaskedLM(AlbertConfig(**common, **no_dropout, embedding_size=8))
    elif kind == "modernbert":
        ends = {"bos_token_id": None, "eos_token_id": EOS, "cls_token_id": None, "sep_token_id": None}
        model = ModernBertForMaskedLM(ModernBertConfig(**common, **ends, global_attn_every_n_layers=1))
    else:
        model = {"llada": LLaDAModelLM, "dream": DreamModel}[kind](vocabulary)
    framed = kind in ("bert", "albert")
    return model.eval(), tokenizer(framed)


def small(vocabulary: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """A model with ``vocabulary`` tokens that can be written (the letters a, b, c…), for enumeration."""
    model, _ = build("modernbert", 5 + vocabulary, seed)
    words = tokenizer(letters=LETTERS[:vocabulary])
    return model, words
