"""The texts that candidates make, against decoding everything anew."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from textguide.classifiers.texts import UNFINISHED, Alphabet

TEXTS = ["The café — 🦜 naïve!", "  two  spaces\nand\tlines", "日本語 text", "a", "''don't'' , stop ."]


def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<end>", *alphabet, "th", "the", "Ġthe", "ðŁ"])}
    inner = Inner(models.BPE(vocab, [("t", "h"), ("th", "e"), ("Ġ", "the"), ("ð", "Ł")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def sentencepiece_like() -> Any:
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz'.,!"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, "▁the", "th"]
    inner = Inner(models.BPE({t: i for i, t in enumerate(tokens)}, [], byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def word_piece() -> Any:
    words = ["[PAD]", "[UNK]", "[SEP]", "the", "cat", "##s", "##ing", "sing", ",", ".", "'", "t", "don"]
    inner = Inner(models.WordPiece({t: i for i, t in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]")


MAKERS = {"byte-level": byte_level, "sentencepiece": sentencepiece_like, "wordpiece": word_piece}


def whole(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).rstrip(UNFINISHED)


@pytest.mark.parametrize("maker", list(MAKERS))
def test_candidates_make_the_text_that_decoding_everything_makes(maker: str) -> None:
    tokenizer = MAKERS[maker]()
    alphabet = Alphabet(tokenizer, len(tokenizer))
    if maker == "byte-level":
        assert alphabet.pieces is not None  # the fast way, not decoding
    chance = random.Random(0)
    for text in [*TEXTS, ""]:
        ids = tokenizer(text, add_special_tokens=False).input_ids
        for cut in range(len(ids) + 1):
            row = alphabet.row(ids[:cut])
            candidates = [*chance.sample(range(len(tokenizer)), min(12, len(tokenizer))), *ids[cut : cut + 1]]
            beginning, endings = row.endings(candidates)
            for token, ending in zip(candidates, endings, strict=True):
                decoded = tokenizer.decode([*ids[:cut], token], clean_up_tokenization_spaces=False)
                # One unfinished character makes the byte fallback's decoder give up the whole run of bytes before it.
                lossy = maker == "sentencepiece" and UNFINISHED in decoded
                # The middle of a word in front of everything is shown with its mark.
                if not lossy and (row.text or maker != "wordpiece"):
                    # A byte that begins no character is shown at once, and is no unfinished one.
                    assert (beginning + ending).rstrip(UNFINISHED) == whole(tokenizer, [*ids[:cut], token])


def test_an_unfinished_character_is_left_out() -> None:
    tokenizer = byte_level()
    alphabet = Alphabet(tokenizer, len(tokenizer))
    first, *rest = tokenizer("🦜").input_ids
    row = alphabet.row([first])
    assert row.text == ""
    assert row.endings(rest[:1]) == ("", [""])
    for token in rest[:-1]:
        row.append(token)
    assert row.endings(rest[-1:]) == ("", ["🦜"])


@pytest.mark.parametrize("maker", list(MAKERS))
def test_rows_grow_and_copy(maker: str) -> None:
    tokenizer = MAKERS[maker]()
    alphabet = Alphabet(tokenizer, len(tokenizer))
    ids = tokenizer(TEXTS[0], add_special_tokens=False).input_ids
    row = alphabet.row([])
    for number, token in enumerate(ids, start=1):
        twin = row.copy()
        twin.append(token)
        before = row.text
        row.append(token)
        assert row.text == twin.text
        if maker != "sentencepiece":
            assert before == whole(tokenizer, ids[: number - 1])
            assert row.text == whole(tokenizer, ids[:number])
    assert row.text == whole(tokenizer, ids)


def test_special_tokens_add_nothing() -> None:
    tokenizer = byte_level()
    row = Alphabet(tokenizer, len(tokenizer) + 3).row(tokenizer("ab").input_ids)
    beginning, endings = row.endings([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<tool>")])
    assert [beginning + ending for ending in endings] == ["ab", "ab<tool>"]
