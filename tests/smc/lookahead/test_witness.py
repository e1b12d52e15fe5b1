"""Completions that were found: exact over whole texts, and documents end in time."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
import torch

from textguide.constraints import Constraint, Grammar, JSONSchema, Predicate, Vocabulary
from textguide.guidance import AWRS
from textguide.reference import smc as reference
from textguide.smc.constrained import Constrained
from textguide.smc.lookahead import lookahead_of, witness
from textguide.smc.lookahead.witness import WitnessLookahead

from ..statistics import chi_square, z_score
from ..table import Text, exact_samples, floats, run, table
from ..toys import END, PIECES, VOCABULARY

LENGTH = 4
LAW = table(3, temperature=1.5)
SIZE = len(PIECES)


MEMBERS = {"a" * depth + core + "b" * depth for depth in range(7) for core in ("c", "ba", "a", "ca")}


@pytest.mark.parametrize(
    "constraint",
    [
        Grammar('start: "a" start "b" | "c" | "ba" | "a" | "ca"\n'),
        Predicate(lambda text: any(member.startswith(text) for member in MEMBERS), MEMBERS.__contains__, ascii=True),
    ],
    ids=["grammar", "function"],
)
def test_the_evidence_stays_unbiased(constraint: Constraint) -> None:
    def member(text: Text) -> bool:
        return SIZE - 1 not in text and b"".join(PIECES[token] for token in text).decode() in MEMBERS

    conditional, evidence = reference.global_conditional(floats(LAW), member, END, LENGTH, SIZE)
    assert len(conditional) > 1
    guidance = AWRS(particles=3, lookahead="automaton", ess_threshold=0.9)
    assert isinstance(lookahead_of("automaton", constraint, VOCABULARY), WitnessLookahead)
    texts, outcome = run(LAW, constraint, guidance, 300, LENGTH, 1)
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
    drawn = exact_samples(texts, outcome)
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3


DOCUMENTS = Vocabulary(
    (b"", *(bytes([byte]) for byte in range(256)), b"ab", b'":', b'",', b'"}', b"}}", b'{"', b"name", b"12", b" the"),
    frozenset({0}),
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "object", "properties": {"cm": {"type": "number"}}, "required": ["cm"]},
        "tags": {"type": "array", "items": {"type": "string", "minLength": 2}},
    },
    "required": ["name", "size"],
}


def written(options: dict[str, Any], limit: int, rows: int = 12) -> tuple[int, list[bytes]]:
    """Texts that ended, of a model that knows nothing and likes no end."""
    constraint = JSONSchema(SCHEMA, whitespace=" ?")
    guidance = AWRS(constraint, **options)
    generator = torch.Generator().manual_seed(1)
    scores = torch.zeros(rows, DOCUMENTS.size)
    scores[:, [0, 1 + ord('"'), 1 + ord("}"), 1 + ord(",")]] = -4.0
    state = Constrained(
        guidance,
        constraint.start(DOCUMENTS),
        DOCUMENTS,
        rows,
        generator,
        limit=limit,
        lookahead=lookahead_of(guidance.lookahead, constraint, DOCUMENTS),
    )
    for index in range(limit):
        last = index == limit - 1
        if state.chooses:
            tokens = state.choose(scores, last)
        else:
            tokens = torch.multinomial(state.mask(scores).softmax(-1), 1, generator=generator).squeeze(1)
        state.advance(tokens, last)
    done = state.outcome().finished.tolist()
    return sum(done), [row.session.text for row, ended in zip(state._rows, done, strict=True) if ended]


@pytest.mark.parametrize("options", [{}, {"sampler": "mask"}], ids=str)
def test_documents_end_in_time(options: dict[str, Any]) -> None:
    ended, texts = written({"lookahead": "automaton", **options}, 30, 6)
    assert ended == 6
    for text in texts:
        assert {"name", "size"} <= set(json.loads(text.decode(errors="replace"), strict=False))
    assert written({"lookahead": None, **options}, 30, 6)[0] < 4
    assert written(options, 30, 6)[0] == 6  # as it is by default


def test_a_witness_is_a_completion() -> None:
    lookahead = lookahead_of("automaton", JSONSchema(SCHEMA), DOCUMENTS)
    assert isinstance(lookahead, WitnessLookahead)
    for text in (b"", b'{"name": "a\\', b'{"name": "ab", "size": {"cm": 1', b'{"name":"","size":{"cm":2},"tags":["'):
        node = lookahead.node(text, lookahead.node(b"", None)) if text else lookahead.node(b"", None)
        assert node.witness is not None
        found = json.loads(text + node.witness)
        assert {"name", "size"} <= set(found)
        assert node.session.is_complete(text + node.witness)


def test_searches_in_vain_become_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A text of which every completion is too long to be found; each such search asks for 512 masks."""
    monkeypatch.setattr(JSONSchema, "completion", Constraint.completion)
    search, texts = witness._search, []
    monkeypatch.setattr(witness, "_search", lambda session, *rest: texts.append(session.text) or search(session, *rest))
    lookahead = lookahead_of("automaton", JSONSchema({"type": "string", "minLength": 2000}), DOCUMENTS)
    assert isinstance(lookahead, WitnessLookahead)
    ahead = lookahead.begin(())
    for token in [1 + ord('"'), *[1 + ord("x")] * 50]:
        assert ahead.following(300) is None
        ahead = ahead.after(token)
    lengths = [len(text) for text in texts]
    assert lengths == [0, 2, 5, 10, 19, 36]


def test_a_search_that_finds_something_ends_the_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JSONSchema, "completion", Constraint.completion)
    lookahead = lookahead_of("automaton", JSONSchema({"type": "string", "minLength": 2000}), DOCUMENTS)
    assert isinstance(lookahead, WitnessLookahead)
    ahead = lookahead.begin(())
    ahead.following(300)
    assert ahead.pause == (1, 1)  # type: ignore[attr-defined]
    ahead = ahead.after(1 + ord('"'))
    assert ahead.pause == (1, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(witness, "_search", lambda *_: b"found")
    ahead = ahead.after(1 + ord("x"))
    assert ahead.witness == b"found"  # type: ignore[attr-defined]
    assert ahead.pause == (0, 0)  # type: ignore[attr-defined]
