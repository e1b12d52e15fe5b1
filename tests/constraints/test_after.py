"""Free text first, the form afterwards: against every text of a few letters, and sampled against enumeration."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest

import textguide
from textguide import AWRS
from textguide.constraints import After, AllOf, AnyOf, Predicate, Regex, Vocabulary, from_dict

pytest.importorskip("llguidance")

TOKENS = (b"", b"a", b"b", b"!", b"ab", b"b!", b"!a", b"!!", b"b!a", b"a!b", b"!ba")
SMALL = Vocabulary(TOKENS, frozenset([0]))
FORM = "a|ba?"
"""Behind the trigger."""


ASKED = Predicate(lambda t: "a".startswith(t) or "ba".startswith(t), lambda t: re.fullmatch(FORM, t) is not None)


def by_hand(trigger: str) -> Any:
    """Where the form begins in a text, or None, by the plainest search."""
    if callable(trigger):
        return lambda text: next((at for at in range(1, len(text) + 1) if trigger(text[:at])), None)
    if trigger.startswith("regex:"):
        pattern = trigger.removeprefix("regex:")
        return lambda text: next(
            (at for at in range(1, len(text) + 1) if re.search(f"(?:{pattern})$", text[:at])), None
        )
    return lambda text: text.find(trigger) + len(trigger) if trigger in text else None


def member(text: str, begin: Any) -> bool:
    at = begin(text)
    return at is not None and re.fullmatch(FORM, text[at:]) is not None


def can_go_on(text: str, begin: Any) -> bool:
    at = begin(text)
    return at is None or any(form.startswith(text[at:]) for form in ("a", "b", "ba"))


TRIGGERS = ["!", "b!", "!!", "ab!a", "regex:b+!?b", "regex:[ab]!", lambda text: text.count("!") == 2]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda one: one if isinstance(one, str) else "function")
@pytest.mark.parametrize("inner", [Regex(FORM), ASKED], ids=["engine", "function"])
def test_every_text_and_every_step(trigger: Any, inner: Any) -> None:
    begin = by_hand(trigger)
    constraint = After(trigger, inner)
    root = constraint.start(SMALL)
    for count in range(5):
        for letters in product("ab!", repeat=count):
            text = "".join(letters)
            assert root.is_prefix(text.encode()) == can_go_on(text, begin), text
            assert root.is_complete(text.encode()) == member(text, begin), text
    # Written token by token: masks where they are known, and the same answers.
    waiting = [(root.fork(), 0)]
    seen = 0
    while waiting:
        session, depth = waiting.pop()
        text = session.text.decode()
        mask = session.mask()
        for token, added in enumerate(TOKENS):
            allowed = member(text, begin) if token == 0 else can_go_on(text + added.decode(), begin)
            if mask is not None:
                assert bool(mask[token]) == allowed, (text, added)
            if token and allowed and depth < 3:
                twin = session.fork()
                twin.advance(token)
                waiting.append((twin, depth + 1))
            elif token and not allowed:
                with pytest.raises(ValueError, match="is not allowed after"):
                    session.fork().advance(token)
        seen += mask is not None
    is_literal = isinstance(trigger, str) and not trigger.startswith("regex:")
    assert (seen > 0) == (is_literal or isinstance(inner, Regex))


def test_forms_combine_with_it() -> None:
    either = AnyOf(After("!", Regex("a")), After("!!", Regex("b"))).start(SMALL)
    assert either.is_complete(b"b!a")
    assert either.is_complete(b"b!!b")
    assert not either.is_complete(b"b!b")
    for token in (2, 7, 2):  # b !! b
        either.advance(token)
    assert either.is_complete(either.text)
    both = AllOf(After("!", Regex("a|b")), Regex("[ab]{2}.*")).start(SMALL)
    assert both.is_complete(b"ba!a")
    assert not both.is_prefix(b"b!")


@pytest.mark.parametrize("trigger", ["\n", "regex:\n+"])
def test_texts_think_first(trigger: str) -> None:
    model, tokenizer = textguide.load("smollm2-small")
    guidance = AWRS(Regex("(yes|no)"), after=trigger, particles=6, ess_threshold=0.0)
    out = textguide.generate(model, tokenizer, "Once", guidance, max_new_tokens=20, seed=3)
    begin = by_hand(trigger)
    assert out.finished.any()
    for text, done in zip(out.texts, out.finished.tolist(), strict=True):
        assert not done or text[begin(text) :] in ("yes", "no")


def test_description_and_errors() -> None:
    constraint = After("</think>", Regex("a"))
    assert from_dict(constraint.to_dict()) == constraint
    guidance = AWRS(Regex("a"), after="</think>")
    assert guidance.to_dict()["after"] == "</think>"
    assert "after" not in AWRS(Regex("a")).to_dict()
    with pytest.raises(ValueError, match="after='' must be a text"):
        AWRS(Regex("a"), after="")
    with pytest.raises(ValueError, match="needs a constraint"):
        AWRS(after="x")
    with pytest.raises(ValueError, match="after='regex:' must be a text"):
        After("regex:", Regex("a"))
    with pytest.raises(ValueError, match=r"after='regex:\(' is not a valid pattern"):
        After("regex:(", Regex("a"))
    with pytest.raises(ValueError, match="matches the empty text"):
        After("regex:a*", Regex("a"))
    with pytest.raises(ValueError, match=r"after=.* must be a text"):
        from_dict(After(str.isascii, Regex("a")).to_dict())
    with pytest.raises(ValueError, match="returned 3 for"):
        After(lambda text: 3, Regex("a")).start(SMALL).is_prefix(b"a")  # type: ignore[return-value, arg-type]
