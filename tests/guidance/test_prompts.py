"""Canonical forms of prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from textguide.guidance.prompts import Message, as_chat, as_prompt, as_prompts, is_chat, per_row, to_json

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
CHAT = (Message("user", "hi"), Message("assistant", "ho"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        ("", ""),
        ([1, 2], (1, 2)),
        ((1, 2), (1, 2)),
        (range(3), (0, 1, 2)),
        (torch.tensor([1, 2]), (1, 2)),
        (np.array([1, 2]), (1, 2)),
        (TURNS, CHAT),
        (tuple(TURNS), CHAT),
        (list(CHAT), CHAT),
        ([TURNS[0], CHAT[1]], CHAT),
    ],
)
def test_one_prompt(value: Any, expected: Any) -> None:
    assert as_prompt(value) == expected
    assert as_prompts(value, "x") == expected
    assert not per_row(expected)
    hash(as_prompt(value))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ("a", "b")),
        (("a",), ("a",)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (torch.tensor([[1, 2], [3, 4]]), ((1, 2), (3, 4))),
        ([torch.tensor([1, 2]), torch.tensor([3])], ((1, 2), (3,))),
        ([TURNS, TURNS[:1]], (CHAT, CHAT[:1])),
        (["a", [1], TURNS], ("a", (1,), CHAT)),
    ],
)
def test_one_prompt_a_row(value: Any, expected: Any) -> None:
    assert as_prompt(value) is None
    assert as_prompts(value, "x") == expected
    assert per_row(expected)
    hash(as_prompts(value, "x"))


@pytest.mark.parametrize(
    "value",
    [
        5,
        1.5,
        True,
        [],
        (),
        [[]],
        [[1], []],
        [1.5],
        [1, "a"],
        [True, False],
        [None],
        ["a", None],
        {"role": "user"},
        TURNS[0],
        [{"role": "user"}],
        [TURNS[0], "a", 3],
        b"bytes",
        bytearray(b"bytes"),
        [b"bytes"],
        torch.tensor(3),
        torch.tensor([1.5]),
        torch.tensor([[1.5]]),
        torch.tensor([], dtype=torch.long),
        object(),
    ],
)
def test_no_prompt(value: Any) -> None:
    with pytest.raises(ValueError, match="negative_prompt=") as caught:
        as_prompts(value, "negative_prompt")
    assert "give a text, token ids or chat messages" in str(caught.value)


def test_none_is_no_prompt_but_allowed() -> None:
    assert as_prompts(None, "x") is None


def test_errors_stay_short() -> None:
    with pytest.raises(ValueError) as caught:
        as_prompts([None] * 1000, "x")
    assert len(str(caught.value)) < 250


def test_chats() -> None:
    assert is_chat(TURNS)
    assert is_chat(CHAT)
    assert not is_chat([])
    assert not is_chat("user")
    assert not is_chat([TURNS[0], "a"])
    assert as_chat(TURNS) == CHAT


@pytest.mark.parametrize("value", ["text", (1, 2), CHAT, ("a", "b"), ((1, 2), (3,)), (CHAT, CHAT[:1], "a", (1,))])
def test_json_comes_back_as_the_same_value(value: Any) -> None:
    plain = to_json(value)
    assert as_prompts(plain, "x") == value


def test_json_of_other_values_is_the_value() -> None:
    assert to_json(None) is None
    assert to_json(1.5) == 1.5
    assert to_json(CHAT) == TURNS
