"""Free text with forms that triggers start, as a constraint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

from ...support.checks import flag, whole_number
from ..base import Citation, Constraint
from ..triggers import Literal
from ..vocabulary import Vocabulary, spelled
from .session import Form, State, Structure, TagsSession

BYTES = Vocabulary((b"", *(bytes([byte]) for byte in range(256))), frozenset([0]))
"""Single bytes as tokens, to read texts without a model."""


@dataclass(frozen=True)
class Tag:
    """A form inside free text: its beginning, its content, and its end.

    Args:
        begin: the text with which it starts, such as ``"<tool_call>"``. In :class:`Tags`, the name of a special token
            of the tokenizer means that token, as it does in prompts.
        constraint: for the content, or a value that describes one, as in :class:`textguide.AWRS`.
        end: the text with which it ends, such as ``"</tool_call>"``. The content ends as soon as it
            satisfies the constraint and this text follows. None: the content goes on to the end of the whole text.

    Raises:
        ValueError: a field has a value that cannot work.
    """

    begin: str
    constraint: Any
    end: str | None = None

    def __post_init__(self) -> None:
        from ..spec import resolve

        if not isinstance(self.begin, str) or not self.begin:
            raise ValueError(f"begin={self.begin!r} of a Tag must be a text such as '<tool_call>'")
        if self.end is not None and (not isinstance(self.end, str) or not self.end):
            raise ValueError(f"end={self.end!r} of a Tag must be a text such as '</tool_call>', or None")
        object.__setattr__(self, "constraint", resolve(self.constraint))


class Piece(NamedTuple):
    """A part of a text.

    Args:
        tag: the tag that it belongs to; None for free text.
        text: the content of the tag, or the free text.
        start: its first character in the whole text.
    """

    tag: Tag | None
    text: str
    start: int


@dataclass(frozen=True)
class Tags(Constraint):
    """Free text in which certain texts start a form that satisfies a constraint: tool calls, thoughts, code fences.

    Free text ends with the first trigger. The text then continues with one of the tags whose ``begin`` starts
    with that trigger, and is free again after the tag. A text may end in free text, and in a tag without ``end``.

    Args:
        tags: the tags.
        triggers: the texts that start tags. Default: the beginnings of the tags; of several beginnings that start
            alike, the shortest one. With ``["<tool"]``, only tags contain ``<tool``.
        at_least: smallest number of tags.
        at_most: largest number of tags; free text after the last one does not contain a trigger. None: no limit.
        free: whether there is free text. If False, tags follow each other directly or after one line break.

    Raises:
        ValueError: a field has a value that cannot work; the message names it. :meth:`start` raises it if a name of a
            special token means an end token, and an :class:`UnsatisfiableError` if nothing satisfies a constraint.

    Example:
        >>> call = Tag("<tool_call>", Call(weather), "</tool_call>")
        >>> AWRS(Tags([call, Tag("<think>", Regex("(?s).*"), "</think>")]))
    """

    tags: Any
    triggers: Any = None
    at_least: int = 0
    at_most: int | None = None
    free: bool = True

    kind = "tags"

    def __post_init__(self) -> None:
        tags = (self.tags,) if isinstance(self.tags, Tag) else self.tags
        if not isinstance(tags, Sequence) or not tags or not all(isinstance(tag, Tag) for tag in tags):
            raise ValueError(f"tags={self.tags!r} must be a list of Tag(begin, constraint, end), at least one")
        object.__setattr__(self, "tags", tuple(tags))
        object.__setattr__(self, "triggers", _triggers_of(self.triggers, self.tags))
        whole_number("at_least", self.at_least, 0)
        if self.at_most is not None:
            whole_number("at_most", self.at_most, max(1, self.at_least), "None sets no limit")
        if self.at_least > 1 and all(tag.end is None for tag in self.tags):
            raise ValueError(
                f"at_least={self.at_least} is impossible, because no tag has an end; pass end= to the tags"
            )
        flag("free", self.free)

    def to_dict(self) -> dict[str, Any]:
        tags = [{"begin": tag.begin, "constraint": tag.constraint.to_dict(), "end": tag.end} for tag in self.tags]
        return {
            "kind": self.kind,
            "tags": tags,
            "triggers": list(self.triggers),
            "at_least": self.at_least,
            "at_most": self.at_most,
            "free": self.free,
        }

    @classmethod
    def build(cls, values: dict[str, Any]) -> Constraint:
        tags = values["tags"]
        if not isinstance(tags, Sequence) or not all(isinstance(tag, Mapping) for tag in tags):
            raise ValueError(f"tags={tags!r} must be a list of objects with begin, constraint and end")
        for tag in tags:
            if not {"begin", "constraint"} <= tag.keys() <= {"begin", "constraint", "end"}:
                raise ValueError(f"tags contains {tag!r}; each needs begin and constraint, and may have an end")
        return cls(**{**values, "tags": tuple(Tag(**tag) for tag in tags)})

    def special_tokens(self, vocabulary: Vocabulary) -> frozenset[str]:
        texts = [*self.triggers, *(tag.begin for tag in self.tags), *(tag.end or "" for tag in self.tags)]
        inner = [tag.constraint.special_tokens(vocabulary) for tag in self.tags]
        return frozenset(name for name, _ in vocabulary.specials if any(name in text for text in texts)).union(*inner)

    def completion(self, text: bytes) -> bytes | None:
        states = _reader(self).states(text)
        if states is None:
            return None
        last = states[-1]
        guesses: list[bytes | None] = [b""]
        if last.forms is not None:
            guesses = [self._rest_of_tag(number, text[last.begin :]) for number in last.forms]
        rest = min((guess for guess in guesses if guess is not None), key=len, default=None)
        missing = max(0, self.at_least - last.count - (last.forms is not None))
        shortest = _shortest_tag(self) if missing else b""
        return None if rest is None or shortest is None else rest + shortest * missing

    def _rest_of_tag(self, number: int, written: bytes) -> bytes | None:
        """A guess for the rest of a tag after what was written since its trigger."""
        tag = self.tags[number]
        rest = tag.begin.encode()[len(_trigger_of_tag(self.triggers, tag).encode()) :]
        end = (tag.end or "").encode()
        if len(written) < len(rest):
            inside = tag.constraint.completion(b"")
            return None if inside is None else rest[len(written) :] + inside + end
        content = written[len(rest) :]
        inside = tag.constraint.completion(content)
        return None if inside is None else inside + end

    def pieces(self, text: str) -> tuple[Piece, ...]:
        """The free text and the contents of the tags of a text, in order; free text that is empty is left out.

        Raises:
            ValueError: the text is not a member, or tags are special tokens, which texts do not show.
        """
        reader = _reader(self)
        states = reader.states(text.encode())
        if states is None or not reader.is_complete(text.encode()):
            raise ValueError(f"text={text[-60:]!r} is not a text of these tags")
        found = []
        for state, following in zip(states, [*states[1:], None], strict=True):
            found.append(self._piece(reader, text.encode(), state, following))
        return tuple(piece for piece in found if piece is not None)

    def _piece(self, reader: TagsSession, text: bytes, state: State, following: State | None) -> Piece | None:
        stop = len(text) if following is None else following.begin
        if state.forms is None:
            trigger = 0
            if following is not None and following.forms is not None:
                trigger = len(self.triggers[reader.trigger_of(following)].encode())
            free = text[state.begin : stop - trigger]
            return Piece(None, free.decode(), len(text[: state.begin].decode())) if free else None
        number, start, end = reader.content(text, state, stop)
        return Piece(self.tags[number], text[start:end].decode(), len(text[:start].decode()))

    def citations(self, text: str) -> tuple[Citation, ...]:
        found = []
        for piece in self.pieces(text):
            if piece.tag is not None:
                for citation in piece.tag.constraint.citations(piece.text):
                    start, end = citation.start + piece.start, citation.end + piece.start
                    found.append(replace(citation, start=start, end=end))
        return tuple(found)

    def start(self, vocabulary: Vocabulary) -> TagsSession:
        names = self.special_tokens(vocabulary)
        vocabulary = vocabulary.spelled(names)
        # A leading space is only dropped at the start of the whole text, not inside a tag.
        inside = replace(vocabulary, drops_leading_space=False) if vocabulary.drops_leading_space else vocabulary
        forms = []
        for tag in self.tags:
            trigger = _trigger_of_tag(self.triggers, tag)
            rest = spelled(tag.begin, names)[len(spelled(trigger, names)) :]
            end = None if tag.end is None else spelled(tag.end, names)
            forms.append(Form(self.triggers.index(trigger), rest, tag.constraint.start(inside), end))
        triggers = tuple(Literal(spelled(trigger, names)) for trigger in self.triggers)
        structure = Structure(triggers, tuple(forms), self.at_least, self.at_most, self.free)
        return TagsSession(structure, vocabulary)


def _triggers_of(value: Any, tags: Sequence[Tag]) -> tuple[str, ...]:
    """The triggers of tags, checked."""
    begins = list(dict.fromkeys(tag.begin for tag in tags))
    if value is None:
        value = [begin for begin in begins if not any(begin != other and begin.startswith(other) for other in begins)]
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Iterable) or not all(isinstance(trigger, str) and trigger for trigger in value):
        raise ValueError(f"triggers={value!r} must be a list of texts")
    triggers = tuple(dict.fromkeys(value))
    for begin in begins:
        if not begin.startswith(triggers):
            raise ValueError(f"begin={begin!r} starts with none of triggers={list(triggers)}; add {begin!r} to them")
    for trigger in triggers:
        _check_trigger(trigger, triggers, begins)
    return triggers


def _check_trigger(trigger: str, triggers: Sequence[str], begins: Sequence[str]) -> None:
    inside = [other for other in triggers if other != trigger and other in trigger]
    if inside:
        raise ValueError(
            f"triggers contains {trigger!r} and {inside[0]!r}, which is a part of it and ends first; leave one of them "
            "out"
        )
    if not any(begin.startswith(trigger) for begin in begins):
        raise ValueError(f"triggers contains {trigger!r}, with which no tag begins; leave it out")


def _trigger_of_tag(triggers: Sequence[str], tag: Tag) -> str:
    """The trigger with which a tag begins; no trigger contains another one, so there is one."""
    return next(trigger for trigger in triggers if tag.begin.startswith(trigger))


@lru_cache(maxsize=32)
def _reader(tags: Tags) -> TagsSession:
    """A session that reads texts without a model."""
    return tags.start(BYTES)


@lru_cache(maxsize=32)
def _shortest_tag(tags: Tags) -> bytes | None:
    """A guess for the shortest tag."""
    guesses = []
    for tag in tags.tags:
        inside = tag.constraint.completion(b"")
        if inside is not None:
            guesses.append(tag.begin.encode() + inside + (tag.end or "").encode())
    return min(guesses, key=len, default=None)
