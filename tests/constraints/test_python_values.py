"""What people write instead of a constraint: types, lists of texts, compiled patterns, functions."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
from typing import Any, Literal

import pytest
import regex
from typing_extensions import TypedDict

from textguide import AWRS, FeynmanKac
from textguide.constraints import After, AnyOf, Call, Constraint, JSONSchema, Not, Regex, Vocabulary, resolve
from textguide.guidance import Guidance

pytest.importorskip("llguidance")
pydantic = pytest.importorskip("pydantic")

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))


class Person(pydantic.BaseModel):
    name: str


@dataclasses.dataclass
class Point:
    x: int


class Movie(TypedDict):
    title: str


class Answer(enum.Enum):
    YES = "yes"
    NO = "no"


class Number(enum.Enum):
    ONE = 1


def weather(city: str) -> str:
    """A function to call."""
    return city


def time(zone: str) -> str:
    """Another one."""
    return zone


def is_complete(value: Any, text: str) -> bool:
    constraint: Constraint = resolve(value)
    return constraint.start(BYTES).is_complete(text.encode())


@pytest.mark.parametrize(
    ("value", "member", "other"),
    [
        (Person, '{"name": "Ann"}', '{"name": 1}'),
        (Point, '{"x": 3}', '{"x": "3"}'),
        (Movie, '{"title": "Alien"}', "{}"),
        (list[Person], '[{"name": "Ann"}]', '{"name": "Ann"}'),
        (Number, "1", "2"),
        (Literal[1, 2], "2", "3"),
        (int | None, "null", "true"),
        (Answer, "yes", '"yes"'),
        (Literal["yes", "no"], "no", '"no"'),
        (Literal[Answer.YES], "yes", "no"),
        (["yes", "no"], "no", "yes|no"),
        (("a.c",), "a.c", "abc"),
        (re.compile("a.c", re.IGNORECASE | re.DOTALL), "A\nC", "A\n"),
        (re.compile("a b # letters", re.VERBOSE), "ab", "a b"),
        (re.compile(r"\d", re.ASCII), "3", "\u0663"),
        (regex.compile("a++b"), "aab", "ab?"),
        (Call([weather, time]), '{"name": "time", "arguments": {"zone": "CET"}}', "{}"),
    ],
    ids=repr,
)
def test_values_that_stand_for_a_constraint(value: Any, member: str, other: str) -> None:
    assert is_complete(value, member)
    assert not is_complete(value, other)
    guidance = AWRS(value)
    hash(guidance)
    again = Guidance.from_dict(json.loads(json.dumps(guidance.to_dict())))
    assert resolve(again.constraint) == resolve(value)
    assert FeynmanKac(constraint=value).to_dict()["constraint"] == resolve(value).to_dict()


def test_texts_of_a_list_have_no_special_characters() -> None:
    texts = ["n o", "a-b", "x\ny", "t\tz", "/", "é漢", "#&~", "a|b", "[q]", "", r"\d", "\"'", "{1}", "^$", "(?i)"]
    session = resolve(texts).start(BYTES)
    assert all(session.is_complete(text.encode()) for text in texts)
    assert not any(session.is_complete(text.encode()) for text in ("a", "b", "no", "5", "q", "N O"))


def test_combinations_accept_the_same_values() -> None:
    assert AnyOf(Answer, re.compile("a")) == AnyOf(Regex("yes|no"), Regex("a"))
    assert AnyOf([["yes", "no"], "regex:a"]) == AnyOf(Regex("yes|no"), Regex("a"))
    assert Not(["yes"]) == Not(Regex("yes"))
    assert After("x", Person) == After("x", JSONSchema(Person))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"is empty; list at least one text"),
        ([1], r"contains 1; a list contains the texts"),
        ([Regex("a")], "AnyOf"),
        (weather, r"is a function; write Call\(weather\) for calls of it as JSON, or Predicate\(weather\)"),
        (re.compile(b"a"), "is a pattern for bytes"),
        (3, "must be a constraint such as"),
        (Regex, "is the class of a constraint; write Regex"),
        (type("Own", (), {}), "has no JSON schema"),
    ],
)
def test_other_values_are_refused_before_anything_is_generated(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AWRS(value)


def test_a_plain_text_is_refused_with_both_remedies() -> None:
    with pytest.raises(ValueError, match=r"write Regex\('\[0-9\]\+'\) or \['\[0-9\]\+'\]"):
        resolve("[0-9]+")
    with pytest.raises(ValueError, match="is a JSON schema; write JSONSchema"):
        resolve({"type": "object"})


def test_a_module_may_name_any_of_these_values() -> None:
    assert resolve("python:tests.constraints.test_python_values:Answer") == Regex("yes|no")
    assert resolve("python:tests.constraints.test_python_values:Person") == JSONSchema(Person)
