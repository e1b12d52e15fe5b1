"""Prompts as tokenizers return them, chats that are to be continued, and lengths that just fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Words
from tokenizers import models, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

import textguide
from textguide import CFG, CFGLogitsProcessor, guided_decoding
from textguide.engine.branch_inputs import branch_rows, canonical_prompts, encode
from textguide.guidance import Message

from ..architectures import EOS, PAD, Tokenizer, build

PROMPT = [5, 9, 33, 7, 20]
TOKENIZER = Tokenizer()


class PadIsEnd(Tokenizer):
    pad_token_id = EOS


@pytest.mark.parametrize("make", [dict, BatchEncoding])
@pytest.mark.parametrize("tensors", [True, False])
def test_encodings_lose_their_padding(make: Any, tensors: bool) -> None:
    rows = {"input_ids": [[PAD, PAD, 4, 8], [5, 9, 33, 7]], "attention_mask": [[0, 0, 1, 1], [1, 1, 1, 1]]}
    encoding = make({name: torch.tensor(value) if tensors else value for name, value in rows.items()})
    assert canonical_prompts(encoding, None, TOKENIZER) == [(4, 8), (5, 9, 33, 7)]
    right = make({"input_ids": [[4, 8, PAD], [5, 9, 33]], "attention_mask": [[1, 1, 0], [1, 1, 1]]})
    assert canonical_prompts(right, None, TOKENIZER) == [(4, 8), (5, 9, 33)]
    # With a mask the padding token is a token where the mask says so.
    same = make({"input_ids": [[EOS, EOS, 8], [EOS, 5, 8]], "attention_mask": [[0, 1, 1], [1, 1, 1]]})
    assert canonical_prompts(same, None, PadIsEnd()) == [(EOS, 8), (EOS, 5, 8)]
    assert canonical_prompts(make({"input_ids": [5, 9]}), None, TOKENIZER) == [(5, 9)]


def test_padded_rows_are_generated_from_as_without_padding() -> None:
    plain = textguide.generate(build("llama"), TOKENIZER, [PROMPT, [4, 8]], CFG(1.5), max_new_tokens=5)
    ids = torch.tensor([PROMPT, [PAD, PAD, PAD, 4, 8]])
    mask = torch.tensor([[1] * 5, [0] * 3 + [1] * 2])
    for prompts in (ids, ids.tolist(), {"input_ids": ids, "attention_mask": mask}, {"input_ids": ids}):
        out = textguide.generate(build("llama"), TOKENIZER, prompts, CFG(1.5), max_new_tokens=5)
        assert out.new_tokens == plain.new_tokens
        assert torch.equal(out.sequences, plain.sequences)


def test_padded_negatives_lose_their_padding() -> None:
    ids = torch.tensor([[PAD, PAD, 4, 8], [5, 9, 33, 7]])
    assert branch_rows(CFG(negative_prompt=ids), cond=[[5], [9]], tokenizer=TOKENIZER) == [[[4, 8], [5, 9, 33, 7]]]
    mixed = torch.tensor([[EOS, EOS, 8], [5, 9, 8]])
    with pytest.raises(ValueError, match=r"negative_prompt\[0\] begins with token 2, which pads"):
        branch_rows(CFG(negative_prompt=mixed), cond=[[5], [9]], tokenizer=PadIsEnd())


@pytest.mark.parametrize(
    ("prompts", "tokenizer", "message"),
    [
        ([[EOS, EOS, 8], [5, 9, 8]], PadIsEnd(), r"prompts\[0\] begins with token 2, which pads and also begins"),
        ([[5, 9, 8], [8, 9, EOS]], PadIsEnd(), r"prompts\[1\] ends with token 2, which pads"),
        ([[PAD, PAD], [5, 9]], Tokenizer(), r"prompts\[0\] only consists of the padding token 0"),
        ({"input_ids": [[5, 9]], "attention_mask": [[0, 0]]}, Tokenizer(), r"prompts\[0\]: attention_mask=\[0, 0\]"),
        ({"input_ids": [[5, 9, 7]], "attention_mask": [[1, 0, 1]]}, Tokenizer(), r"must be 1 for a run of tokens"),
        ({"input_ids": [[5, 9]], "attention_mask": [[1]]}, Tokenizer(), "must have the shape of input_ids"),
        (
            {"input_ids": [[5, 9]], "pixel_values": [[0.0]]},
            Tokenizer(),
            "prompts has pixel_values in addition to input_ids",
        ),
    ],
)
def test_padding_that_cannot_be_told(prompts: Any, tokenizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_prompts(prompts, None, tokenizer)


def test_rows_that_are_no_padded_batch_stay() -> None:
    # All rows begin with a token that pads and begins texts (GPT-2's): it begins them.
    assert canonical_prompts([[EOS, 4, 8], [EOS, 5, 9]], None, PadIsEnd()) == [(EOS, 4, 8), (EOS, 5, 9)]
    assert canonical_prompts([[PAD, 4, 8], [5, 9]], None, TOKENIZER) == [(PAD, 4, 8), (5, 9)]
    assert canonical_prompts([PAD, 4, 8], None, TOKENIZER) == [(PAD, 4, 8)]


def chats() -> PreTrainedTokenizerFast:
    words = ["<|a|>", "<|u|>", "</s>", "hi", "ho", "hm", "there", "?"]
    core = Words(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|u|> ' if m.role == 'user' else '<|a|> ' }}{{ m.content }}{{ ' </s> ' }}"
        "{% endfor %}{{ '<|a|> ' if add_generation_prompt }}"
    )
    return tokenizer


def test_chats_that_end_in_a_turn_of_the_assistant_go_on_in_it() -> None:
    tokenizer = chats()

    def read(*turns: str) -> str:
        roles = ("user", "assistant", "user", "assistant")
        chat = tuple(Message(role, turn) for role, turn in zip(roles, turns, strict=False))
        return tokenizer.decode(encode(chat, tokenizer, "x"))

    assert read("hi") == "<|u|> hi </s> <|a|>"
    assert read("hi", "ho there") == "<|u|> hi </s> <|a|> ho there"
    assert read("hi", "ho", "hm") == "<|u|> hi </s> <|a|> ho </s> <|u|> hm </s> <|a|>"
    assert read("hi", "ho", "hi", "ho") == "<|u|> hi </s> <|a|> ho </s> <|u|> hi </s> <|a|> ho"
    assert read("hi", "") == read("hi")


@pytest.mark.parametrize("speculation", [None, "both"])
def test_a_prompt_that_fits_exactly(speculation: Any) -> None:
    model = build("gpt2")  # 64 positions, learned
    prompt = [5 + n % 7 for n in range(55)]
    out = textguide.generate(model, TOKENIZER, prompt, CFG(1.5), max_new_tokens=10, speculation=speculation)
    assert len(out.new_tokens[0]) == 10
    scored = textguide.score(model, TOKENIZER, [prompt], out.new_tokens, CFG(1.5))
    assert scored.log_likelihood[0, 0].item() == pytest.approx(out.log_likelihood[0].item(), abs=1e-3)
    negative = CFG(1.5, negative_prompt=prompt[::-1])
    assert len(textguide.generate(model, TOKENIZER, [5, 9], negative, max_new_tokens=10).new_tokens[0]) == 10
    with pytest.raises(ValueError, match=r"prompts\[0\] has 55 tokens and max_new_tokens=11.*64 positions"):
        textguide.generate(model, TOKENIZER, prompt, CFG(1.5), max_new_tokens=11)
    with pytest.raises(ValueError, match=r"negative_prompt\[0\] has 55 tokens and max_new_tokens=11"):
        textguide.generate(model, TOKENIZER, [5, 9], negative, max_new_tokens=11)


@pytest.mark.parametrize("name", ["gpt2", "bart"])
@pytest.mark.parametrize(
    ("negative", "message"),
    [([99], r"has token id 99; the vocabulary has 61"), ([5] * 70, "has 70 tokens.* 64 positions")],
)
def test_negatives_that_the_model_cannot_read(name: str, negative: list[int], message: str) -> None:
    model = build(name)
    inputs = {"inputs": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 5), "max_new_tokens": 4}
    guidance = CFG(1.5, negative_prompt=negative)
    with pytest.raises(ValueError, match=r"negative_prompt\[0\] " + message):
        model.generate(**inputs, custom_generate=guided_decoding(guidance))
    with pytest.raises(ValueError, match=r"negative_prompt\[0\] " + message):
        textguide.generate(model, TOKENIZER, PROMPT, guidance, max_new_tokens=4)
    with pytest.raises(ValueError, match=r"negative_prompt_ids(\[0\]| and what was written) (has|are) "):
        model.generate(**inputs, logits_processor=[CFGLogitsProcessor(model, 1.5, negative)])


def test_negatives_that_outgrow_the_positions() -> None:
    model = build("gpt2")
    inputs = {"inputs": torch.tensor([PROMPT]), "attention_mask": torch.ones(1, 5), "do_sample": False}
    fits = model.generate(**inputs, max_new_tokens=5, logits_processor=[CFGLogitsProcessor(model, 1.5, [5] * 60)])
    assert fits.shape == (1, 10)
    with pytest.raises(ValueError, match=r"negative_prompt_ids.0. has 60 tokens and max_new_tokens=6.*64 positions"):
        model.generate(**inputs, max_new_tokens=6, logits_processor=[CFGLogitsProcessor(model, 1.5, [5] * 60)])


def test_two_negatives_for_four_prompts() -> None:
    model = build("llama")
    ids = torch.tensor([PROMPT, PROMPT[::-1], [8] * 5, [4, 8, 5, 9, 33]])
    inputs = {"inputs": ids, "attention_mask": torch.ones(4, 5), "max_new_tokens": 4, "do_sample": False}
    two = CFG(1.5, negative_prompt=[[17], [18]])
    with pytest.raises(ValueError, match="negative_prompt has 2 rows and the batch has 4; pass one"):
        model.generate(**inputs, custom_generate=guided_decoding(two))
    with pytest.raises(ValueError, match="negative_prompt_ids has 2 rows and the batch has 4; pass one"):
        model.generate(**inputs, logits_processor=[CFGLogitsProcessor(model, 1.5, [[17], [18]])])
    by_hand = CFGLogitsProcessor(model, 1.5, [[17], [18]])
    with pytest.raises(ValueError, match="negative_prompt_ids has 2 rows and the batch has 4; pass one"):
        by_hand(ids, torch.zeros(4, 61))
    by_hand(ids[[0, 0, 1, 1]], torch.zeros(4, 61))
    # One for each of two prompts that are sampled twice, and one for each row.
    twice = {**inputs, "inputs": ids[:2], "attention_mask": torch.ones(2, 5), "do_sample": True}
    for negatives in ([[17], [18]], [[17], [17], [18], [18]]):
        torch.manual_seed(0)
        rows = model.generate(
            **twice, num_return_sequences=2, custom_generate=guided_decoding(CFG(1.5, negative_prompt=negatives))
        )
        torch.manual_seed(0)
        dropped = model.generate(
            **twice, num_return_sequences=2, logits_processor=[CFGLogitsProcessor(model, 1.5, negatives)]
        )
        assert rows.tolist() == dropped.tolist()


def test_the_amateurs_own_sizes_count() -> None:
    import transformers as tf

    from textguide.guidance import ContrastiveDecoding

    short = tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=8, vocab_size=61)).eval()
    with pytest.raises(ValueError, match=r"negative_prompt\[0\] has 5 tokens and max_new_tokens=6.*8 positions"):
        textguide.generate(
            build("llama"), TOKENIZER, PROMPT, ContrastiveDecoding(), max_new_tokens=6, models={"amateur": short}
        )
