"""Quotes: against all substrings of a document, and sampled against enumeration."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.smc.statistics import chi_square, z_score
from tests.smc.table import exact_samples, floats, run, table
from tests.smc.toys import END, PIECES, VOCABULARY
from textguide.constraints import AllOf, Corpus, Predicate, Quote, UnsatisfiableError, Vocabulary, from_dict, resolve
from textguide.constraints.quotes import suffixes
from textguide.guidance import AWRS
from textguide.reference import smc as reference

BYTES = [bytes([byte]) for byte in range(256)]
WORDS = ["ab", "a ", " b", "é ", "é", "b\n", " a b", "\u3000", "ba é", "  ", "x", "\u3000a"]
VOCABULARY_OF_BYTES = Vocabulary((b"", *BYTES, *(word.encode() for word in WORDS), b"a\xc3", b"\xa9b"), frozenset([0]))
DROPPING = Vocabulary(VOCABULARY_OF_BYTES.tokens, frozenset([0]), drops_leading_space=True)


def normalized(text: str) -> str:
    return " ".join(text.split())


def quotes(documents: list[str], whitespace: str, unit: str, least: int, most: int | None) -> set[str]:
    """All quotes, from the definition."""
    found = set()
    for document in documents:
        text = normalized(document) if whitespace == "normalized" else document
        for start in range(len(text)):
            for end in range(start + 1, len(text) + 1):
                quote = text[start:end]
                size = len(quote)
                if unit == "word":
                    before, after = text[start - 1 : start], text[end : end + 1]
                    size = len(quote.split())
                    if not (before.isspace() or start == 0) or not (after.isspace() or end == len(text)):
                        continue
                    if quote != quote.strip():
                        continue
                if least <= size and (most is None or size <= most):
                    found.add(quote)
    return found


SETTINGS: list[dict[str, Any]] = [
    {},
    {"whitespace": "normalized"},
    {"unit": "word"},
    {"unit": "word", "whitespace": "normalized", "least": 2},
    {"least": 3, "most": 4},
    {"most": 2},
    {"unit": "word", "most": 1},
    {"unit": "word", "least": 2, "most": 2},
]
DOCUMENTS = [["ab a b\n a é b", "ba é\u3000a ab", ""], ["  é ab  "], ["aab\u3000aab é", "aab"]]


@pytest.mark.parametrize("documents", DOCUMENTS, ids=str)
@pytest.mark.parametrize("options", SETTINGS, ids=str)
@pytest.mark.parametrize("few", [0, 256])
def test_every_verdict_and_every_mask(
    documents: list[str], options: dict[str, Any], few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suffixes, "FEW", few)  # both ways to find the tokens
    expected = {"whitespace": "exact", "unit": "character", "least": 1, "most": None, **options}
    members = {quote.encode() for quote in quotes(documents, **expected)}
    constraint = Corpus(documents, **options)
    if not members:
        with pytest.raises(UnsatisfiableError, match="has no quote"):
            constraint.start(VOCABULARY_OF_BYTES)
        return
    prefixes = {member[:size] for member in members for size in range(len(member) + 1)}
    session = constraint.start(VOCABULARY_OF_BYTES)
    for text in sorted(prefixes):
        assert session.is_prefix(text)
        assert session.is_complete(text) == (text in members)
        here = session.fork()
        if text:
            here.write(text)
        mask = here.mask()
        assert mask is not None
        assert mask[0] == (text in members)
        for token, added in enumerate(VOCABULARY_OF_BYTES.tokens):
            if added:
                assert bool(mask[token]) == (text + added in prefixes) == here.is_prefix(text + added), (text, added)


def test_the_space_that_decoding_drops() -> None:
    session = Quote("a b").start(DROPPING)
    mask = session.mask()
    assert mask is not None
    allowed = {DROPPING.tokens[token] for token in mask.nonzero().flatten().tolist()}
    assert allowed == {b"a", b"b", b" ", b"a ", b" b", b" a b", b"  "}
    session.write(b" ")
    assert not session.is_complete(b" ")
    assert session.is_complete(b" a")
    assert session.is_prefix(b"  b")
    assert not session.is_prefix(b" ab")


@pytest.mark.parametrize("seed", range(3))
def test_suffixes_are_sorted(seed: int) -> None:
    rng = random.Random(seed)
    documents = ["".join(rng.choice("ab") for _ in range(rng.randint(0, 60))) for _ in range(4)] + ["a" * 50] * 2
    data = suffixes.joined(document.encode() for document in documents)
    starts = torch.arange(0, len(data), 2).numpy()
    order = suffixes.SuffixIndex(data, starts).order.tolist()
    assert sorted(order) == starts.tolist()
    assert all(data[a:] <= data[b:] for a, b in pairwise(order))


def test_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("The  cat\nsat. The cat ran.", encoding="utf-8")
    corpus = Corpus({"a": tmp_path / "a.txt", "b": "the cat"}, whitespace="normalized")
    texts = dict(corpus.documents)
    found = corpus.sources("cat")
    assert [(source.document, texts[source.document][source.start : source.end]) for source in found] == [
        ("a", "cat"),
        ("a", "cat"),
        ("b", "cat"),
    ]
    assert [texts["a"][source.start : source.end] for source in corpus.sources("The cat")] == ["The  cat", "The cat"]
    assert texts["a"][slice(*_span(corpus.sources("cat sat.")[0]))] == "cat\nsat."
    (citation,) = corpus.citations("cat")
    assert (citation.start, citation.end, citation.sources) == (0, 3, found)
    assert [source.document for source in Corpus([tmp_path / "a.txt", "cat"]).sources("cat")][-1] == "1"
    with pytest.raises(ValueError, match="text='dog' is not a quote of Corpus"):
        corpus.sources("dog")
    with pytest.raises(ValueError, match="is not a quote"):
        Quote("a b", unit="word", least=2).sources("a")


def _span(source: Any) -> tuple[int, int]:
    return source.start, source.end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 3}, "text=3 must be a text"),
        ({"text": "a", "least": 0}, "least=0"),
        ({"text": "a", "least": 2, "most": 1}, "most=1"),
        ({"text": "a", "unit": "line"}, "unit='line'"),
        ({"text": "a", "whitespace": "any"}, "whitespace='any'"),
        ({"text": Path("nowhere.txt")}, "text='nowhere.txt' cannot be read"),
    ],
)
def test_fields_that_cannot_work(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quote(**arguments)


@pytest.mark.parametrize("documents", [[], "text", 3, [3]])
def test_documents_that_cannot_work(documents: Any) -> None:
    with pytest.raises(ValueError, match="documents"):
        Corpus(documents)


def test_documents_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffixes, "LARGEST", 10)
    with pytest.raises(ValueError, match="the documents have 12 bytes"):
        Quote("hello there").start(VOCABULARY_OF_BYTES)


def test_to_json_and_back(tmp_path: Path) -> None:
    for constraint in (Quote("a b", unit="word", most=3), Corpus({"x": "a", "y": "b"}, whitespace="normalized")):
        again = from_dict(json.loads(json.dumps(constraint.to_dict())))
        assert again == constraint
        assert hash(again) == hash(constraint)
    path = tmp_path / "a.txt"
    path.write_text("hello")
    assert resolve(f"quote:{path}") == Corpus([path])


LAW = table(5, temperature=1.5)
TEXT = "cabcabbacacabaab"
LENGTH = 4


@pytest.mark.parametrize("options", [{"least": 3}, {"least": 2, "most": 4}], ids=str)
@pytest.mark.parametrize(("masks", "particles"), [(True, 4), (False, 1)])
def test_samples_follow_the_law(options: dict[str, Any], masks: bool, particles: int) -> None:
    """Against the enumeration of all texts of up to four tokens."""
    members = quotes([TEXT], "exact", "character", **{"least": 1, "most": None, **options})
    constraint: Any = Quote(TEXT, **options)
    if not masks:  # the predicate has no mask, so tokens are proposed and checked
        constraint = AllOf(constraint, Predicate(lambda text: True))

    def member(text: tuple[int, ...]) -> bool:
        special = len(PIECES) - 1
        return special not in text and b"".join(PIECES[token] for token in text).decode() in members

    conditional, evidence = reference.global_conditional(floats(LAW), member, END, LENGTH, len(PIECES))
    guidance = AWRS(particles=particles, ess_threshold=0.9)
    texts, outcome = run(LAW, constraint, guidance, 2500, LENGTH, 2, VOCABULARY)
    drawn = exact_samples(texts, outcome)
    assert len(drawn) > 60
    assert chi_square(Counter(drawn), conditional, len(drawn)) > 1e-3
    assert abs(z_score(outcome.log_evidence.exp().tolist(), evidence)) < 3.5
