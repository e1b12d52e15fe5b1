"""The text of a stream, piece by piece, is the text of generate: spaces, characters of several tokens, early ends."""

from __future__ import annotations

import inspect
import pickle
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers
from transformers import LogitsProcessor, PreTrainedTokenizerFast, StoppingCriteria

import textguide
from textguide import AWRS, CFG
from textguide.engine.text_stream import TextStream
from textguide.support.errors import EmptyTextWarning

from .architectures import EOS, VOCAB, Tokenizer, build

TOKENS = [
    "<pad>", "<s>", "</s>", "▁a", "▁bird", "s", "<0x0A>", "▁", "▁▁", ".", "<0xE2>", "<0x82>", "<0xAC>", "<0xF0>",
    "<0x9F>", "<0x90>", "<0xA6>", "▁sang", "\n",
]  # fmt: skip
TOKENS += [f"x{number}" for number in range(VOCAB - len(TOKENS))]


def llama_2() -> PreTrainedTokenizerFast:
    """A tokenizer that decodes as Llama 2's does: bytes, and the first space of a text dropped."""
    core = Core(models.WordLevel({token: number for number, token in enumerate(TOKENS)}, unk_token="<pad>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


def metaspace() -> PreTrainedTokenizerFast:
    """One whose decoder drops the space of the first token."""
    tokenizer = llama_2()
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def ids(*tokens: str) -> list[int]:
    return [TOKENS.index(token) for token in tokens]


BIRD = ("<0xF0>", "<0x9F>", "<0x90>", "<0xA6>")
TEXTS = [
    ids("▁a", "▁bird", "<0x0A>", "▁sang", "▁▁", "<0x0A>", "<0x0A>", "▁a", "."),
    ids("▁a", "\n", "▁bird", "s", "\n", "▁", "▁sang"),
    ids("▁", "<0xE2>", "<0x82>", "<0xAC>", "<0x0A>", *BIRD, "▁a"),
    ids("▁a", *BIRD[:3]),
    ids(*BIRD[:2], "▁a", *BIRD[:1]),
    ids("<0xE2>", "<0x0A>", "▁sang", *BIRD),
]


def stoppable() -> PreTrainedTokenizerFast:
    """:class:`Tokenizer` as one of transformers', which its stop strings look into."""
    names = ["<pad>", "<s>", "</s>", *Tokenizer.letters]
    names += [f"x{number}" for number in range(VOCAB - len(names))]
    core = Core(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


class Forced(LogitsProcessor):
    """Makes the rows write given tokens."""

    def __init__(self, rows: list[list[int]], prompt: int) -> None:
        self.rows, self.prompt = rows, prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.prompt
        out = torch.full_like(scores, float("-inf"))
        for row, tokens in enumerate(self.rows):
            out[row, tokens[step] if step < len(tokens) else EOS] = 0.0
        return out


@pytest.mark.parametrize("make", [llama_2, metaspace])
@pytest.mark.parametrize("tokens", TEXTS)
def test_the_text_of_a_stream_is_the_text_of_generate(make: Any, tokens: list[int]) -> None:
    tokenizer = make()
    prompt = ids("▁a", "▁bird", "▁sang")
    options: dict[str, Any] = {"max_new_tokens": len(tokens), "logits_processor": [Forced([tokens], 3)]}
    out = textguide.generate(build("llama"), tokenizer, prompt, CFG(1.5), **options)
    assert out.new_tokens == [tokens]
    chunks = list(textguide.stream(build("llama"), tokenizer, prompt, CFG(1.5), **options))
    assert [chunk.token for chunk in chunks] == tokens
    assert "".join(chunk.text for chunk in chunks) == out.texts[0] == tokenizer.decode(tokens)


def test_a_character_comes_with_its_last_token_and_nothing_waits_longer() -> None:
    stream = TextStream(llama_2())
    found = [stream.put(token) for token in ids("▁a", "<0xE2>", "<0x82>", "<0xAC>", "s")]
    three = ids("<0xE2>", "<0x82>", "<0xAC>")
    assert found == [
        [(ids("▁a")[0], "a")], [], [], [(three[0], ""), (three[1], ""), (three[2], "€")], [(ids("s")[0], "s")],
    ]  # fmt: skip
    assert stream.end() == []


class EndsAt(StoppingCriteria):
    """Ends each row when it is so many tokens long."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([input_ids.shape[1] >= length for length in self.lengths])


@pytest.mark.parametrize("guidance", [None, CFG(1.5)])
@pytest.mark.parametrize("sampled", [False, True])
def test_rows_that_a_criterion_ended_hold_nothing_behind_their_end(guidance: Any, sampled: bool) -> None:
    prompts = [[5, 9, 33, 7, 20], [11, 4, 52, 8, 30], [4, 8, 5, 9, 33]]
    options: dict[str, Any] = {"max_new_tokens": 7, "stopping_criteria": [EndsAt([7, 99, 10])]}
    options |= {"do_sample": True, "seed": 1, "top_k": 0} if sampled else {}
    out = textguide.generate(build("llama"), Tokenizer(), prompts, guidance, **options)
    assert [len(row) for row in out.new_tokens] == [2, 7, 5]
    assert out.texts == [Tokenizer().decode(row) for row in out.new_tokens]
    assert out.sequences[0, 7:].tolist() == [0] * 5
    assert out.log_probs[0, 2:].tolist() == [0.0] * 5
    assert out.log_probs[0, :2].ne(0).all()
    rows: list[list[int]] = [[], [], []]
    for chunk in textguide.stream(build("llama"), Tokenizer(), prompts, guidance, **options):
        rows[chunk.row].append(chunk.token)
    assert rows == out.new_tokens


def test_a_row_that_its_constraint_gave_up_writes_nothing_more() -> None:
    from textguide.constraints import Vocabulary

    texts = [letter.encode() for letter in Tokenizer.letters]
    letters = Vocabulary((b"", b"", b"", *texts, *[b""] * (VOCAB - 3 - len(texts))), frozenset({EOS}))
    guidance = AWRS("regex:[ab]{2}", sampler="mask")
    options: dict[str, Any] = {"max_new_tokens": 6, "vocabulary": letters, "eos_token_id": EOS}
    out = textguide.generate(build("llama"), Tokenizer(), [[5, 9], [4, 8]], guidance, **options)
    rows: list[list[int]] = [[], []]
    for chunk in textguide.stream(build("llama"), Tokenizer(), [[5, 9], [4, 8]], guidance, **options):
        rows[chunk.row].append(chunk.token)
    assert rows == out.new_tokens
    assert [len(row) for row in rows] == [3, 3]


def forced(text: str) -> dict[str, Any]:
    tokens = Tokenizer()(text).input_ids
    return {"logits_processor": [Forced([tokens], 2)], "max_new_tokens": 12}


def test_a_chunk_is_text() -> None:
    out = textguide.generate(build("llama"), Tokenizer(), [[5, 9]], CFG(1.5), **forced("a bird sang"))
    chunks = list(textguide.stream(build("llama"), Tokenizer(), [[5, 9]], CFG(1.5), **forced("a bird sang")))
    assert "".join(chunks) == out.texts[0] == "a bird sang"
    assert [chunk.row for chunk in chunks] == [0] * len(chunks)
    assert chunks[2].text == "b"
    assert type(chunks[2].text) is str
    again = pickle.loads(pickle.dumps(chunks[2]))
    assert (again, again.row, again.token) == ("b", 0, chunks[2].token)
    assert repr(again) == f"StreamChunk(row=0, text='b', token={again.token})"


@pytest.mark.parametrize(
    ("written", "stop", "reason", "shown"),
    [
        ("a bird sang", ["ird"], "stop", "a b"),
        ("a bird sang", ["sang", "bi"], "stop", "a "),
        ("a birbird", ["bird"], "stop", "a bir"),
        ("a bird", ["x"], "eos", "a bird"),
        ("a birdsangaa", ["x"], "length", "a birdsangaa"),
        ("a birdsangab", ["abc", "x"], "length", "a birdsangab"),
        ("a birdsangab", ["ab"], "stop", "a birdsang"),
    ],
)
def test_why_a_text_ended_and_whether_its_stop_stays(written: str, stop: list[str], reason: str, shown: str) -> None:
    options: dict[str, Any] = {"stop": stop, "eos_token_id": EOS, **forced(written)}
    arguments = (build("llama"), stoppable(), [[5, 9]], CFG(1.5))
    out = textguide.generate(*arguments, **options)
    assert out.finish_reasons == [reason]
    assert written.startswith(out.texts[0])
    assert reason != "stop" or any(out.texts[0].endswith(one) for one in stop)
    without = textguide.generate(*arguments, include_stop=False, **options)
    assert without.texts == [shown]
    assert without.new_tokens == out.new_tokens
    chunks = list(textguide.stream(*arguments, include_stop=False, **options))
    assert "".join(chunks) == shown
    assert all(shown.startswith("".join(chunks[:n])) for n in range(len(chunks)))


def test_a_text_that_is_empty_because_of_its_stop_text_is_reported() -> None:
    options: dict[str, Any] = {"stop": ["x", "a"], "eos_token_id": EOS, **forced("abird")}
    arguments = (build("llama"), stoppable(), [[5, 9]], CFG(1.5))
    assert textguide.generate(*arguments, **options).texts == ["a"]  # not empty: the stop text is a part of it
    message = r"1 of 1 texts are empty: the model generated the stop text 'a' first\..*as a chat, or another stop text"
    for call in (textguide.generate, lambda *rows, **named: list(textguide.stream(*rows, **named))):
        with pytest.warns(EmptyTextWarning, match=message):
            call(*arguments, include_stop=False, **options)
    with pytest.warns(EmptyTextWarning, match="the model generated the stop text ' ' first"):
        assert textguide.generate(*arguments, **options | {"stop": " ", **forced(" bird")}).texts == [" "]


def test_criteria_of_ones_own_and_constraints_are_named() -> None:
    prompts = [[5, 9, 33, 7, 20], [11, 4, 52, 8, 30]]
    options: dict[str, Any] = {"max_new_tokens": 7, "stopping_criteria": [EndsAt([7, 99])]}
    out = textguide.generate(build("llama"), Tokenizer(), prompts, CFG(1.5), **options)
    assert out.finish_reasons == ["stop", "length"]
    with pytest.raises(ValueError, match="include_stop='no' must be True or False"):
        textguide.generate(build("llama"), Tokenizer(), prompts, include_stop="no")


@pytest.mark.parametrize("guidance", [None, CFG(1.5)])
def test_stop_texts_inside_transformers(guidance: Any) -> None:
    tokenizer = stoppable()
    call = textguide.guided_decoding(guidance, tokenizer=tokenizer, stop="ird")
    options: dict[str, Any] = {**forced("a bird sang"), "eos_token_id": EOS, "pad_token_id": 0}
    ids = build("llama").generate(torch.tensor([[5, 9]]), custom_generate=call, do_sample=False, **options)
    assert tokenizer.decode(ids[0, 2:]) == "a bird"
    with pytest.raises(ValueError, match=r"stop=\('x',\) needs tokenizer="):
        textguide.guided_decoding(guidance, stop="x")


def test_signatures_are_those_of_the_class_and_of_the_call() -> None:
    call = textguide.guided_decoding(CFG(1.5))
    assert list(inspect.signature(type(call)).parameters)[:2] == ["guidance", "tokenizer"]
    assert list(inspect.signature(call).parameters)[:2] == ["model", "input_ids"]


def test_stop_strings_without_a_tokenizer_are_refused_as_ever() -> None:
    call = textguide.guided_decoding(CFG(1.5))
    with pytest.raises(ValueError, match="tokenizer"):
        build("llama").generate(torch.tensor([[5, 9]]), custom_generate=call, stop_strings=["x"], max_new_tokens=2)
