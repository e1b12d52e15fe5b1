"""From prompts to the token ids of every branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from textguide import CFG
from textguide.engine.branch_inputs import branch_rows, canonical_prompts, encode, expand, with_system
from textguide.guidance import Branch, BranchGuidance, Formula, Message

from ..architectures import BOS, Tokenizer

TURNS = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
CHAT = (Message("system", "be kind"), Message("user", "hi"))


def ids(text: str) -> list[int]:
    return [3 + Tokenizer.letters.index(c) for c in text]


class NoBegin(Tokenizer):
    bos_token_id = None


class NoTemplate(Tokenizer):
    chat_template = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Same(BranchGuidance):
    """A guidance whose branch differs in its model alone."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch(same_prompt=True, model="amateur"), Branch(prompt=(7,)))

    def combine(self, logp: Any, step: Any) -> Any:
        return logp[0]


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("text", ["text"]),
        ("", [""]),
        ([1, 2], [(1, 2)]),
        (torch.tensor([1, 2]), [(1, 2)]),
        (torch.tensor([[1, 2], [3, 4]]), [(1, 2), (3, 4)]),
        (TURNS, [CHAT]),
        (["a", "b"], ["a", "b"]),
        ([[1, 2], [3]], [(1, 2), (3,)]),
        ([TURNS, "a", [3]], [CHAT, "a", (3,)]),
        ((p for p in ("a", "b")), ["a", "b"]),
    ],
)
def test_canonical(prompts: Any, expected: Any) -> None:
    assert canonical_prompts(prompts, None, Tokenizer()) == expected


@pytest.mark.parametrize("prompts", [5, None, 1.5, TURNS[0], torch.tensor(3), b"bytes", {"a": 1}])
def test_canonical_names_what_is_no_prompt(prompts: Any) -> None:
    with pytest.raises(ValueError, match="prompts"):
        canonical_prompts(prompts, None, Tokenizer())


def test_canonical_names_the_row() -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\]=None is not a prompt"):
        canonical_prompts(["a", None], None, Tokenizer())
    with pytest.raises(ValueError, match=r"prompts\[1\]=\[\] is not a prompt"):
        canonical_prompts([[1], []], None, Tokenizer())
    with pytest.raises(ValueError, match="prompts is empty"):
        canonical_prompts([], None, Tokenizer())


def test_system_makes_chats() -> None:
    assert canonical_prompts(["hi", TURNS], "be brief", Tokenizer()) == [
        (Message("system", "be brief"), Message("user", "hi")),
        (Message("system", "be brief"), Message("user", "hi")),
    ]
    with pytest.raises(ValueError, match=r"system.*token ids"):
        canonical_prompts([[1, 2]], "be brief", Tokenizer())


def test_with_system_keeps_the_other_turns() -> None:
    chat = (*CHAT, Message("assistant", "ho"), Message("user", "hm"))
    assert with_system(chat, "x") == (Message("system", "x"), *chat[1:])
    assert with_system(chat[1:], "x") == (Message("system", "x"), *chat[1:])


def test_encode() -> None:
    assert encode((5, 6), None, "x") == [5, 6]
    assert encode("ab", Tokenizer(), "x") == ids("ab")
    assert encode(CHAT, Tokenizer(), "x") == ids("system:be kind\nuser:hi\n")
    assert encode("", Tokenizer(), "x") == [BOS]


@pytest.mark.parametrize(
    ("prompt", "tokenizer", "message"),
    [
        ("", NoBegin(), r"x=''.*no begin token"),
        (CHAT, NoTemplate(), "x is a chat.*no chat template"),
        ("text", None, "x='text'.*needs a tokenizer"),
        (CHAT, None, "x=.*needs a tokenizer"),
    ],
)
def test_encode_errors(prompt: Any, tokenizer: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(prompt, tokenizer, "x")


COND = [[5, 6, 7], [8, 9]]


def test_last_token_by_default() -> None:
    assert branch_rows(CFG(), cond=COND) == [[[7], [9]]]
    assert branch_rows(CFG(), cond=COND, empty_source=[2]) == [[[2], [2]]]


def test_rows_are_copies() -> None:
    (rows,) = branch_rows(CFG(), cond=COND, empty_source=[2])
    rows[0].append(99)
    assert rows[1] == [2]
    (same, _) = branch_rows(Same(), cond=COND)
    same[0].append(99)
    assert COND[0] == [5, 6, 7]


def test_one_negative_for_all_and_one_a_row() -> None:
    assert branch_rows(CFG(negative_prompt=[1, 2]), cond=COND) == [[[1, 2], [1, 2]]]
    assert branch_rows(CFG(negative_prompt=[[1, 2], [3]]), cond=COND) == [[[1, 2], [3]]]
    assert branch_rows(CFG(negative_prompt=[[1, 2]]), cond=COND) == [[[1, 2], [1, 2]]]
    text = CFG(negative_prompt=["ab", TURNS])
    assert branch_rows(text, cond=COND, tokenizer=Tokenizer()) == [[ids("ab"), ids("system:be kind\nuser:hi\n")]]
    # A negative prompt is itself, also for an encoder-decoder.
    assert branch_rows(CFG(negative_prompt=[1]), cond=COND, empty_source=[2]) == [[[1], [1]]]


def test_mismatched_negatives() -> None:
    three = CFG(negative_prompt=[[1], [2], [3]])
    with pytest.raises(ValueError, match="negative_prompt has 3 rows and the batch has 2"):
        branch_rows(three, cond=COND)
    with pytest.raises(ValueError, match="negative_prompt has 3 rows and the batch has 1"):
        branch_rows(three, cond=COND[:1])
    # Two negatives for four prompts are a mistake, unless the four are two prompts twice.
    two = CFG(negative_prompt=[[1], [2]])
    with pytest.raises(ValueError, match="negative_prompt has 2 rows and the batch has 4"):
        branch_rows(two, cond=COND + COND)
    assert branch_rows(two, cond=COND + COND, copies=2) == [[[1], [1], [2], [2]]]


def test_text_negative_without_tokenizer() -> None:
    with pytest.raises(ValueError, match=r"negative_prompt='ab'.*tokenizer"):
        branch_rows(CFG(negative_prompt="ab"), cond=COND)


def test_negative_system() -> None:
    guidance = CFG(negative_system="be rude")
    ho = (Message("user", "ho"),)
    rows = branch_rows(guidance, cond=COND, tokenizer=Tokenizer(), prompts=[CHAT, ho])
    assert rows == [[ids("system:be rude\nuser:hi\n"), ids("system:be rude\nuser:ho\n")]]
    with pytest.raises(ValueError, match="negative_system needs the prompts"):
        branch_rows(guidance, cond=COND, tokenizer=Tokenizer())
    with pytest.raises(ValueError, match="token ids"):
        branch_rows(guidance, cond=COND, tokenizer=Tokenizer(), prompts=[(1, 2), (3,)])
    with pytest.raises(ValueError, match=r"negative_system is a chat.*no chat template"):
        branch_rows(guidance, cond=COND, tokenizer=NoTemplate(), prompts=[CHAT, ho])


def test_empty_negative_system_is_a_system_prompt() -> None:
    prompts = [(Message("user", "ho"),)]
    rows = branch_rows(CFG(negative_system=""), cond=COND[:1], tokenizer=Tokenizer(), prompts=prompts)
    assert rows == [[ids("system:\nuser:ho\n")]]


@pytest.mark.parametrize(
    ("guidance", "name"),
    [
        (CFG(negative_system="be rude"), "negative_system"),
        (CFG(negative_prompt=TURNS), "negative_prompt"),
        (CFG(negative_prompt=[[1, 2], TURNS]), "negative_prompt"),
        (Formula("cond - 0.5*M('m')"), None),
    ],
)
def test_a_text_is_not_compared_with_a_chat(guidance: Any, name: str | None) -> None:
    if name is None:
        assert branch_rows(guidance, cond=COND, tokenizer=Tokenizer(), prompts=[CHAT, "ho"])
        return
    with pytest.raises(ValueError, match=rf"{name} makes a chat.*'ho' is a plain text.*pass system="):
        branch_rows(guidance, cond=COND, tokenizer=Tokenizer(), prompts=[CHAT, "ho"])
    assert branch_rows(guidance, cond=COND, tokenizer=Tokenizer(), prompts=[CHAT, CHAT])


def test_several_branches() -> None:
    assert branch_rows(Same(), cond=COND) == [COND, [[7], [7]]]


def test_expand() -> None:
    assert expand([[1]], 3) == [[1], [1], [1]]
    assert expand([[1], [2]], 2) == [[1], [2]]
    # generate puts the copies of one prompt next to each other.
    assert expand([[1], [2]], 4, copies=2) == [[1], [1], [2], [2]]
    assert expand([[1], [2], [3], [4]], 4, copies=2) == [[1], [2], [3], [4]]
    for copies in (1, 4):
        with pytest.raises(ValueError, match="thing has 2 rows and the batch has 4"):
            expand([[1], [2]], 4, "thing", copies=copies)
    for size in (1, 3):
        with pytest.raises(ValueError, match=f"thing has 2 rows and the batch has {size}"):
            expand([[1], [2]], size, "thing")
