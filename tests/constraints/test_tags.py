"""Forms in free text: against the definition for every text of a few tokens, and sampled against enumeration."""

from __future__ import annotations

import json
import re
from functools import cache
from itertools import product
from typing import Any

import pytest

from tests.smc.statistics import z_score
from tests.smc.table import floats, run, shares_hold, table
from textguide.constraints import (
    After,
    AllOf,
    AnyOf,
    JSONSchema,
    Predicate,
    Quote,
    Regex,
    Tag,
    Tags,
    UnsatisfiableError,
    Vocabulary,
    from_dict,
)
from textguide.guidance import AWRS
from textguide.reference import smc as reference

pytest.importorskip("llguidance")

TOKENS = (b"", b"a", b"b", b"<", b">", b"<a", b"b>", b">a", b"<<", b"a>b", b"\n", b"")
SMALL = Vocabulary(TOKENS, frozenset([0]), specials=(("[X]", 11),))


def is_member(structure: dict[str, Any], text: str, count: int = 0) -> bool:
    """Whether a text is allowed, from the definition: free text and forms are read in turn."""
    ends = [(at, one) for one in structure["triggers"] for at in range(len(text) + 1) if text[:at].endswith(one)]
    if not ends:
        return count >= structure["at_least"] and (structure["free"] or text in ("", "\n"))
    at, trigger = min(ends)
    if count == structure["at_most"] or not (structure["free"] or text[: at - len(trigger)] in ("", "\n")):
        return False
    forms = [one for one in structure["forms"] if one[0].startswith(trigger)]
    for stop in range(at, len(text) + 1):
        for begin, content, end in forms:
            written = text[at - len(trigger) : stop]
            if written.startswith(begin) and (end is None or written.endswith(end)):
                body = written[len(begin) : len(written) - len(end or "")]
                if len(begin) + len(end or "") > len(written) or not re.fullmatch(content, body):
                    continue
                if end is not None:
                    return is_member(structure, text[stop:], count + 1)  # it ends at the first place
                if stop == len(text) and count + 1 >= structure["at_least"]:
                    return True
    return False


def can_go_on(structure: dict[str, Any], text: str) -> bool:
    """Whether a text is the start of an allowed one, by trying continuations of up to four characters."""
    for size in range(5):
        if any(is_member(structure, text + "".join(rest)) for rest in product("ab<>", repeat=size)):
            return True
    return False


def tags_of(structure: dict[str, Any], checked: bool = False) -> Tags:
    """The constraint; ``checked``: contents have no mask."""
    tags = []
    for begin, content, end in structure["forms"]:
        inner: Any = Regex(content)
        if checked:
            inner = AllOf(inner, Predicate(lambda text: True))
        tags.append(Tag(begin, inner, end))
    return Tags(tags, structure["triggers"], structure["at_least"], structure["at_most"], structure["free"])


def structure(forms: list[Any], triggers: list[str], at_least: int = 0, at_most: int | None = None, free: bool = True):
    return {"forms": forms, "triggers": triggers, "at_least": at_least, "at_most": at_most, "free": free}


STRUCTURES = {
    "one": structure([("<", "a+", ">")], ["<"]),
    "end inside": structure([("<", "a+(>b)?", ">")], ["<"], 1),
    "any content": structure([("<", "[ab<>]*", ">>")], ["<"], 0, 1),
    "ambiguous": structure([("<a", "b*", ">"), ("<", "[ab]b?", "b>")], ["<"], 0, 2),
    "long trigger": structure([("<<a", "b", ">"), ("<<b", "a?", ">")], ["<<"], 1, 1),
    "two triggers": structure([("a<", "b", ">"), (">", "a?", "<")], ["a<", ">"], 0, 2),
    "no free text": structure([("<", "a+", ">")], ["<"], 1, None, False),
    "no end": structure([("<", "(ab?)+", None), ("<a", "b", ">")], ["<"], 1, 2),
    "end that repeats": structure([("<", "[ab]*", "aba")], ["<"], 1),
}


@pytest.mark.parametrize("name", STRUCTURES)
@pytest.mark.parametrize("checked", [False, True], ids=["masks", "checks"])
def test_every_text_and_every_mask(name: str, checked: bool) -> None:
    described = STRUCTURES[name]
    prefix = cache(lambda text: can_go_on(described, text.decode()))
    start = tags_of(described, checked).start(SMALL)
    walked = 0
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        tokens = waiting.pop()
        text = b"".join(TOKENS[token] for token in tokens)
        session = start.fork()
        for token in tokens:
            session.advance(token)
        walked += 1
        complete = is_member(described, text.decode())
        assert session.text == text
        assert start.is_complete(text) == session.is_complete(text) == complete, text
        mask = session.mask()
        assert (mask is None) <= checked
        for token in range(1, 11):
            whole = text + TOKENS[token]
            allowed = prefix(whole)
            assert start.is_prefix(whole) == session.is_prefix(whole) == allowed, whole
            assert session.is_complete(whole) == is_member(described, whole.decode()), whole
            assert mask is None or bool(mask[token]) == allowed, whole
            if allowed and len(tokens) < 2:
                waiting.append((*tokens, token))
        assert mask is None or (bool(mask[0]), bool(mask[11])) == (complete, False)
    assert walked > 5


def test_texts_are_read_back() -> None:
    tags = Tags([Tag("<", Regex("a+(>b)?"), ">"), Tag("{", JSONSchema(True), "}")])
    text = 'é<a>b>bb{{"}": "é"}}<aa>'
    pieces = tags.pieces(text)
    assert [(None if piece.tag is None else piece.tag.begin, piece.text) for piece in pieces] == [
        (None, "é"),
        ("<", "a"),
        (None, "b>bb"),
        ("{", '{"}": "é"}'),
        ("<", "aa"),
    ]
    assert all(text[piece.start :].startswith(piece.text) for piece in pieces)
    with pytest.raises(ValueError, match="is not a text of these tags"):
        tags.pieces("<b>")


def test_citations_of_contents() -> None:
    tags = Tags(Tag("<", Quote("the cat", unit="word"), ">"))
    (citation,) = tags.citations("é<cat>")
    assert (citation.start, citation.end, citation.sources[0].start) == (2, 5, 4)
    (citation,) = After("é", Quote("the cat")).citations("aécat")
    assert (citation.start, citation.end) == (2, 5)


def test_completions_are_right() -> None:
    """What is guessed for the shortest continuation is one, if the contents guess theirs."""
    tags = Tags([Tag("<", JSONSchema({"const": 1}), ">"), Tag("{", JSONSchema({"const": "a"}), "}")], at_least=2)
    session = tags.start(Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0])))
    for text in (b"", b"a", b"<", b"<1", b"<1>", b"<1>b{", b'<1>b{"a', b'<1>b{"a"}', b"<1><1>c"):
        guess = tags.completion(text)
        assert guess is not None
        assert session.is_complete(text + guess), (text, guess)


def test_tags_that_are_special_tokens() -> None:
    """Only the token itself starts the form; its name, written by other tokens, is free text."""
    tokens = (*TOKENS, b"[", b"X", b"]", b"\xff", b"[X]")
    vocabulary = Vocabulary(tokens, frozenset([0]), specials=(("[X]", 11), ("[Y]", 0)))
    tags = Tags(Tag("[X]", Regex("a"), "b"))
    session = tags.start(vocabulary)
    mask = session.mask()
    assert mask is not None
    assert bool(mask[11])
    assert bool(mask[16])  # the name as text
    assert not mask[15]  # a byte that no text contains
    text = session.fork()
    text.advance(16)
    assert text.is_complete(text.text)
    session.advance(11)
    assert not session.is_complete(session.text)
    mask = session.mask()
    assert mask is not None
    assert mask.nonzero().flatten().tolist() == [1]
    session.advance(1)
    session.advance(2)
    assert session.is_complete(session.text)
    # Combinations use the same bytes.
    both = AnyOf(tags, Regex("b"))
    session = both.start(both.vocabulary(vocabulary))
    session.advance(11)
    assert not AllOf(tags, Regex(".*")).start(both.vocabulary(vocabulary)).is_prefix(b"\xff")
    with pytest.raises(ValueError, match=r"'\[Y\]' ends the text"):
        Tags(Tag("[Y]", Regex("a"))).start(vocabulary)
    after = After("[X]", Regex("a")).start(vocabulary)
    after.advance(16)
    after.advance(11)
    assert not after.is_prefix(after.text + b"b")


def test_characters_are_whole() -> None:
    tokens = (b"", "é".encode(), b"\xc3", b"\xa9", b"\xa9<", b"<", b"a", b">")
    session = Tags(Tag("<", Regex("a"), ">")).start(Vocabulary(tokens, frozenset([0])))
    assert not session.is_prefix(b"\xa9")
    assert not session.is_complete(b"\xc3")
    assert not session.is_prefix(b"\xc3<")
    session.advance(2)
    mask = session.mask()
    assert mask is not None
    assert mask.nonzero().flatten().tolist() == [3, 4]


def test_to_json_and_back() -> None:
    tags = Tags([Tag("<f>", Regex("a"), ">"), Tag("<g>", ["yes", "no"])], ["<"], at_least=1, at_most=3, free=False)
    again = from_dict(json.loads(json.dumps(tags.to_dict())))
    assert again == tags
    assert hash(again) == hash(tags)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Tags([]), "must be a list of Tag"),
        (lambda: Tags(["<"]), "must be a list of Tag"),
        (lambda: Tag("", Regex("a")), "begin=''"),
        (lambda: Tag("<", Regex("a"), ""), "end=''"),
        (lambda: Tag("<", 3), "must be a constraint"),
        (lambda: Tags(Tag("<", Regex("a")), at_least=2), "at_least=2 is impossible"),
        (lambda: Tags(Tag("<", Regex("a"), ">"), at_least=2, at_most=1), "at_most=1"),
        (lambda: Tags(Tag("<", Regex("a"), ">"), at_most=0), "at_most=0"),
        (lambda: Tags(Tag("<", Regex("a"), ">"), ["{"]), "starts with none of triggers"),
        (lambda: Tags(Tag("<", Regex("a"), ">"), ["<", "{"]), "with which no tag begins"),
        (lambda: Tags([Tag("<a", Regex("a")), Tag("a", Regex("a"))]), "is a part of it and ends first"),
        (lambda: Tags(Tag("<", Regex("a"), ">"), free=1), "free=1"),
        (lambda: from_dict({"kind": "tags", "tags": [{"begin": "<"}]}), "each needs begin and constraint"),
    ],
)
def test_fields_that_cannot_work(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_contents_that_nothing_satisfies() -> None:
    with pytest.raises(UnsatisfiableError):
        Tags(Tag("<", Regex(r"[^\s\S]"), ">")).start(SMALL)


LAW = table(11, len(TOKENS), temperature=1.5)
LENGTH = 4


@pytest.mark.parametrize("name", ["end inside", "ambiguous", "no end"])
@pytest.mark.parametrize(("checked", "particles"), [(False, 2), (True, 1)])
def test_samples_follow_the_law(name: str, checked: bool, particles: int) -> None:
    """Against the enumeration of all texts of up to four tokens."""

    def member(text: tuple[int, ...]) -> bool:
        return 11 not in text and is_member(STRUCTURES[name], b"".join(TOKENS[token] for token in text).decode())

    conditional, evidence = reference.global_conditional(floats(LAW), member, 0, LENGTH, len(TOKENS))
    guidance = AWRS(particles=particles, ess_threshold=0.9)
    texts, outcome = run(LAW, tags_of(STRUCTURES[name], checked), guidance, 3000, LENGTH, 2, SMALL)
    assert len(conditional) > 10
    finished = {text for text, is_done in zip(texts, outcome.finished.tolist(), strict=True) if is_done}
    assert finished <= conditional.keys()
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    shares_hold(texts, outcome, conditional, evidence, least=20)
