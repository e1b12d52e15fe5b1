"""What a value under construction must still satisfy: one plan for each way to satisfy a set of schemas.

``anyOf``, ``oneOf`` and ``if`` are alternatives; a plan contains one entry of each, so it is a plain conjunction that
can be compared with a text at every character. A plan never excludes a text that a valid value starts with. What it
does not decide is validated by the library when the value ends.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Set
from functools import cached_property
from typing import Any

from ..automata.characters import Range
from ..automata.expressions import ByteAutomaton
from . import ecma_patterns, formats
from .escapes import may_read_one, readable, starts_with_one
from .nodes import Choice, Node, kind_of
from .numbers import NumberRange, fraction_of, may_become

Following = tuple[Range, ...] | None
MOST_PLANS = 64
"""Plans for one value; further alternatives are left to the library."""
_DECIDED: dict[str, set[str]] = {
    "object": {"properties", "required", "additionalProperties", "patternProperties", "propertyNames"}
    | {"minProperties", "maxProperties"},
    "array": {"prefixItems", "items", "additionalItems", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
    "number": set(),
    "boolean": set(),
    "null": set(),
}
"""Keywords that a plan decides alone, by type."""
_OF_KIND: dict[str, set[str]] = {
    "object": _DECIDED["object"] | {"unevaluatedProperties", "dependentRequired", "dependentSchemas", "dependencies"},
    "array": _DECIDED["array"] | {"uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}
_ALWAYS_DECIDED = {"type", "allOf", "anyOf", "$ref", "$dynamicRef", "$recursiveRef", "then", "else"}
_TYPED_KEYWORDS = set().union(*_OF_KIND.values())


class Plan:
    """Schemas that a value of one type must satisfy together.

    Args:
        nodes: the schemas; references, ``allOf`` and the chosen alternatives are among them.
    """

    kind = ""

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        self.nodes = nodes
        self.checked = tuple(node for node in nodes if self._needs_library(node))
        """Schemas that the library validates when the value ends."""

    def _needs_library(self, node: Node) -> bool:
        others = (_TYPED_KEYWORDS - _OF_KIND.get(self.kind, set())) | _DECIDED[self.kind] | _ALWAYS_DECIDED
        if node.schemas.draft == "4" and "integer" in str(node.keywords.get("type")):
            return True
        needed = set(node.keywords) - others
        return bool(needed) or self._has_integers(node)

    def _has_integers(self, node: Node) -> bool:
        return self.kind == "number" and "integer" in str(node.keywords.get("type"))

    @property
    def is_possible(self) -> bool:
        """Whether some value may satisfy the plan, as far as that is easy to see."""
        return True

    def without(self, values: list[Any]) -> Plan | None:
        """The plan for values besides these; None if it is easy to see that there are none."""
        return self

    def accepts(self, value: Any, key: Any) -> bool:
        """Whether a finished value satisfies the plan."""
        return all(node.is_valid(value, key) for node in self.checked)


class WordPlan(Plan):
    """A plan for true, false and null."""

    def __init__(self, nodes: tuple[Node, ...], kind: str) -> None:
        self.kind = kind
        super().__init__(nodes)


class NumberPlan(Plan):
    """A plan for numbers."""

    kind = "number"

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        super().__init__(nodes)
        whole = NumberRange()
        for node in nodes:
            whole = whole.both(node.number_range)
        self.ranges = [whole]
        for node in nodes:
            if node.number_values is not None:
                self.ranges = [one.both(value) for one in self.ranges for value in node.number_values]

    def without(self, values: list[Any]) -> Plan | None:
        kept = self.ranges
        for value in values:
            if kind_of(value) == "number":
                kept = [part for one in kept for part in one.without(fraction_of(value))]
        return _changed(self, "ranges", kept) if kept else None

    @property
    def is_possible(self) -> bool:
        return any(may_become("-", one) or _is_possible_above_zero(one) for one in self.ranges)

    def may_start_with(self, text: str) -> bool:
        """Whether a number of the plan may start with ``text``, or be it."""
        return any(may_become(text, one) for one in self.ranges)


def _changed(plan: Plan, name: str, value: Any) -> Plan:
    """A copy of a plan with another value of an attribute; the plan itself if the value is the same."""
    if getattr(plan, name) == value:
        return plan
    changed = copy.copy(plan)
    setattr(changed, name, value)
    return changed


def _is_possible_above_zero(range_: NumberRange) -> bool:
    return any(may_become(digit, range_) for digit in "0123456789")


class StringPlan(Plan):
    """A plan for strings."""

    kind = "string"

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        super().__init__(nodes)
        keywords = [node.keywords for node in nodes]
        self.least = max((int(one["minLength"]) for one in keywords if "minLength" in one), default=0)
        longest = [int(one["maxLength"]) for one in keywords if "maxLength" in one]
        self.longest = min(longest) if longest else None
        self.automata = tuple(dict.fromkeys(_automata(nodes)))
        self.values = _common_strings(nodes)

    @property
    def is_possible(self) -> bool:
        return self.longest is None or self.least <= self.longest

    def without(self, values: list[Any]) -> Plan | None:
        if self.values is None:
            return self
        used = {value.encode("utf-8", "surrogatepass") for value in values if isinstance(value, str)}
        kept = [value for value in self.values if value not in used]
        return _changed(self, "values", kept) if kept else None

    @property
    def is_free(self) -> bool:
        """Whether any string may start in any way."""
        return self.longest is None and not self.automata and self.values is None

    @property
    def start(self) -> tuple[int, ...]:
        """The states of the automata before a string."""
        return tuple(automaton.start for automaton in self.automata)

    def run(self, states: tuple[int, ...], text: bytes) -> tuple[int, ...] | None:
        """The states of the automata after ``text``; None if no string of the plan continues it."""
        after = []
        for automaton, state in zip(self.automata, states, strict=True):
            state = automaton.run(state, text)
            if state == automaton.dead:
                return None
            after.append(state)
        return tuple(after)

    def has_room(self, states: tuple[int, ...], length: int) -> bool:
        """Whether what the automata still need fits into the length, after ``length`` characters."""
        if self.longest is None:
            return True
        pairs = zip(self.automata, states, strict=True)
        return all(length + int(automaton.characters[state]) <= self.longest for automaton, state in pairs)

    def may_read_one(self, states: tuple[int, ...], length: int, ranges: tuple[Range, ...]) -> bool:
        """Whether the next character may be one in ``ranges``, which makes ``length`` characters."""
        if self.longest is None:
            return may_read_one(self.automata, states, ranges)
        return any(self.has_room(after, length) for _, after in readable(self.automata, states, ranges))

    def may_start_with(self, text: bytes, length: int, following: Following = None) -> bool:
        """Whether the length and the listed values allow a string that starts with ``text``.

        Args:
            text: UTF-8, which may end inside a character.
            length: characters, including an incomplete one.
            following: code points of which one must follow, as ranges; None: the text may also end.
        """
        if self.longest is not None and length > self.longest:
            return False
        return self.values is None or any(_continues(value, text, following) for value in self.values)

    def accepts(self, value: Any, key: Any) -> bool:
        length = len(value)
        if length < self.least or (self.longest is not None and length > self.longest):
            return False
        return super().accepts(value, key)


def _automata(nodes: Iterable[Node]) -> Iterator[ByteAutomaton]:
    for node in nodes:
        automaton = None
        if "pattern" in node.keywords:
            automaton = ecma_patterns.automaton_of(node.keywords["pattern"])
            if automaton is not None:
                yield automaton
        if "format" in node.keywords and node.schemas.asserts_formats:
            automaton = formats.automaton_of(node.keywords["format"])
            if automaton is not None:
                yield automaton


def _common_strings(nodes: Iterable[Node]) -> list[bytes] | None:
    """The strings that all lists of values contain, as UTF-8; None if no schema lists values."""
    common: list[str] | None = None
    for node in nodes:
        if node.values is not None:
            strings = [value for value in node.values if isinstance(value, str)]
            common = strings if common is None else [value for value in common if value in strings]
    return None if common is None else [value.encode("utf-8", "surrogatepass") for value in common]


class ArrayPlan(Plan):
    """A plan for arrays."""

    kind = "array"

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        super().__init__(nodes)
        self.least = max((int(node.keywords.get("minItems", 0)) for node in nodes), default=0)
        most = [int(node.keywords["maxItems"]) for node in nodes if "maxItems" in node.keywords]
        self.most = min(most) if most else None
        self.is_unique = any(node.keywords.get("uniqueItems") is True for node in nodes)
        self._items: dict[int, tuple[Node, ...]] = {}

    @property
    def is_possible(self) -> bool:
        if self.most is not None and self.least > self.most:
            return False
        return self.least == 0 or self.may_have(0)

    def may_have(self, number: int) -> bool:
        """Whether there may be an item of this number, counted from 0."""
        if self.most is not None and number >= self.most:
            return False
        return not any(node.is_false for node in self.of_item(number))

    def of_item(self, number: int) -> tuple[Node, ...]:
        """The schemas of an item."""
        if number not in self._items:
            found = []
            for node in self.nodes:
                item = node.of_item(number)
                if item is not None:
                    found.append(item)
                found += _unevaluated_item(node, number)
            self._items[number] = tuple(dict.fromkeys(found))
        return self._items[number]

    def accepts_items(self, items: list[Any]) -> bool:
        """Whether an unfinished array with these items may still become valid, after the last one was added."""
        if self.is_unique and any(_same(items[-1], other) for other in items[:-1]):
            return False
        for node in self.nodes:
            contained = None if node.schemas.is_opaque else node.child("contains")
            if contained is None or "maxContains" not in node.keywords:
                continue
            if sum(contained.is_valid(item, None) for item in items) > node.keywords["maxContains"]:
                return False
        return True

    def accepts(self, value: Any, key: Any) -> bool:
        count = len(value)
        if count < self.least or (self.most is not None and count > self.most):
            return False
        return super().accepts(value, key)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal in JSON, where true is not 1."""
    if kind_of(one) != kind_of(other):
        return False
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    return bool(one == other)


def _unevaluated_item(node: Node, number: int) -> list[Node]:
    """The schema for unevaluated items, if no other schema can evaluate the item of this number."""
    unevaluated = node.child("unevaluatedItems")
    if unevaluated is None:
        return []
    for other in node.reachable:
        if "$recursiveRef" in other.keywords or (other is not node and "unevaluatedItems" in other.keywords):
            return []
        if other.of_item(number) is not None or "contains" in other.keywords:
            return []
    return [unevaluated]


class ObjectPlan(Plan):
    """A plan for objects."""

    kind = "object"

    def __init__(self, nodes: tuple[Node, ...]) -> None:
        super().__init__(nodes)
        keywords = [node.keywords for node in nodes]
        self.required = tuple(dict.fromkeys(name for one in keywords for name in _required(one)))
        self.least = max((int(one.get("minProperties", 0)) for one in keywords), default=0)
        most = [int(one["maxProperties"]) for one in keywords if "maxProperties" in one]
        self.most = min(most) if most else None
        self.closed = tuple(node for node in nodes if _is_closed(node))
        self.unevaluated = tuple(node for node in nodes if "unevaluatedProperties" in node.keywords)
        self.names = tuple(node for node in (node.child("propertyNames") for node in nodes) if node is not None)
        self._properties: dict[str, tuple[Node, ...]] = {}

    @cached_property
    def is_possible(self) -> bool:
        if self.most is not None and max(self.least, len(self.required)) > self.most:
            return False
        return all(self.allows(name) for name in self.required)

    @cached_property
    def key_plans(self) -> tuple[Plan, ...]:
        """Plans for the names of properties; empty if any name satisfies ``propertyNames``."""
        return plans(self.names, "string") if self.names else ()

    @cached_property
    def listed(self) -> tuple[bytes, ...]:
        """Names of properties that the closed schemas list, as UTF-8."""
        names = dict.fromkeys(name for node in self.all_closed for name in _listed(node))
        return tuple(name.encode("utf-8", "surrogatepass") for name in names if self.allows(name))

    @cached_property
    def all_closed(self) -> tuple[Node, ...]:
        """Schemas that forbid unknown names."""
        return (*self.closed, *(node for node in self.unevaluated if _closes_unevaluated(node)))

    @cached_property
    def patterns_of_closed(self) -> tuple[tuple[str, ...], ...]:
        """The patterns for names that each closed schema allows."""
        return tuple(tuple(_patterns(node)) for node in self.all_closed)

    def allows(self, name: str) -> bool:
        """Whether a property may have this name."""
        if any(node.is_false for node in self.of_property(name)):
            return False
        if not self.names:
            return True
        return any(plan.accepts(name, None) for plan in self.key_plans) and all(
            node.is_valid(name, ("name", name)) for node in self.names
        )

    def of_property(self, name: str) -> tuple[Node, ...]:
        """The schemas of a property."""
        if name not in self._properties:
            found = [child for node in self.nodes for child in node.of_property(name)]
            for node in self.unevaluated:
                found += _unevaluated_property(node, name)
            self._properties[name] = tuple(dict.fromkeys(found))
        return self._properties[name]

    def may_have_name(self, begun: bytes, length: int, used: Set[str], following: Following = None) -> bool:
        """Whether a name that starts with ``begun`` may follow, besides the names that are used.

        Args:
            begun: UTF-8, which may end inside a character.
            length: characters, including an incomplete one.
            used: names of other properties.
            following: code points of which one must follow ``begun``, as ranges; None: the name may also end.
        """
        missing = self.only_names(used)
        if missing is not None:
            return any(_continues(name, begun, following) for name in missing)
        rests = [name[len(begun) :] for name in map(_as_bytes, used) if name.startswith(begun)]
        if self.names and not any(_may_be_name(plan, begun, length, rests, following) for plan in self.key_plans):
            return False
        if not self.all_closed:
            return True
        for name in self.listed:
            if _continues(name, begun, following) and name.decode("utf-8", "surrogatepass") not in used:
                return True
        return all(_may_match(patterns, begun, rests, following) for patterns in self.patterns_of_closed)

    def has_any_name(self, used: Set[str]) -> bool:
        """Whether the next property may have any name that is not used."""
        return not self.names and not self.all_closed and self.only_names(used) is None

    def only_names(self, used: Set[str]) -> list[bytes] | None:
        """The names that are missing if there is no room for others, none if the object is full; None: there is."""
        if self.most is None:
            return None
        if len(used) >= self.most:
            return []
        missing = [_as_bytes(name) for name in self.required if name not in used]
        return missing if missing and len(used) + len(missing) >= self.most else None

    def may_end_with(self, used: Set[str]) -> bool:
        """Whether the names that are missing fit into an object that has these."""
        missing = sum(name not in used for name in self.required)
        return self.most is None or len(used) + missing <= self.most

    def accepts(self, value: Any, key: Any) -> bool:
        count = len(value)
        if count < self.least or (self.most is not None and count > self.most):
            return False
        return all(name in value for name in self.required) and super().accepts(value, key)


def _required(keywords: Any) -> list[str]:
    required = keywords.get("required", [])
    return required if isinstance(required, list) else []


def _is_closed(node: Node) -> bool:
    additional = node.child("additionalProperties")
    return additional is not None and additional.is_false


def _closes_unevaluated(node: Node) -> bool:
    """Whether ``unevaluatedProperties`` forbids unknown names, because no other schema can evaluate them."""
    unevaluated = node.child("unevaluatedProperties")
    if unevaluated is None or not unevaluated.is_false:
        return False
    if "additionalProperties" in node.keywords or "$recursiveRef" in node.keywords:
        return False
    return not any(_evaluates_all(other) for other in node.reachable if other is not node)


def _evaluates_all(node: Node) -> bool:
    return not node.keywords.keys().isdisjoint(("additionalProperties", "unevaluatedProperties", "$recursiveRef"))


def _listed(node: Node) -> Iterator[str]:
    """The names that a schema lists; for one with ``unevaluatedProperties``, also those of schemas inside it."""
    for other in node.reachable if "unevaluatedProperties" in node.keywords else (node,):
        yield from other.named_properties()


def _patterns(node: Node) -> Iterator[str]:
    """The patterns for names, from the same schemas as :func:`_listed`."""
    for other in node.reachable if "unevaluatedProperties" in node.keywords else (node,):
        yield from other.patterns()


def _continues(text: bytes, begun: bytes, following: Following) -> bool:
    """Whether a text starts with ``begun``, and then with one of the following characters."""
    if not text.startswith(begun):
        return False
    return following is None or starts_with_one(text[len(begun) :], following)


def _as_bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _may_match(patterns: Iterable[str], begun: bytes, used: Collection[bytes], following: Following) -> bool:
    return any(_may_match_one(pattern, begun, used, following) for pattern in patterns)


def _may_match_one(pattern: str, begun: bytes, used: Collection[bytes], following: Following) -> bool:
    """Whether a text that starts with ``begun``, and does not go on like those that are used, may match a pattern."""
    automaton = ecma_patterns.automaton_of(pattern)
    if automaton is None:
        return True
    state = automaton.run(automaton.start, begun)
    if following is None:
        return automaton.has_other(state, used) if used else state != automaton.dead
    if not used:
        return may_read_one((automaton,), (state,), following)
    for character, (after,) in readable((automaton,), (state,), following):
        rests = [text[len(character) :] for text in used if text.startswith(character)]
        if automaton.has_other(after, rests):
            return True
    return False


def _unevaluated_property(node: Node, name: str) -> list[Node]:
    """The schema for unevaluated properties, if no other schema can evaluate the one of this name."""
    unevaluated = node.child("unevaluatedProperties")
    assert unevaluated is not None
    for other in node.reachable:
        if "$recursiveRef" in other.keywords or (other is not node and _evaluates_all(other)):
            return []
        if other.of_property(name):
            return []
    return [unevaluated]


def _may_be_name(plan: Plan, begun: bytes, length: int, used: Collection[bytes], following: Following) -> bool:
    assert isinstance(plan, StringPlan)
    if not plan.may_start_with(begun, length, following):
        return False
    if plan.values is not None and used:
        rests = [value[len(begun) :] for value in plan.values if _continues(value, begun, following)]
        return any(rest not in used for rest in rests)
    states = plan.run(plan.start, begun)
    if states is None:
        return False
    if following is None and not plan.has_room(states, length):
        return False
    if used and len(states) == 1 and not plan.automata[0].has_other(states[0], used):
        return False
    return following is None or plan.may_read_one(states, length, following)


# -- plans of schemas --------------------------------------------------------------------------------------------------


def plans(nodes: tuple[Node, ...], kind: str) -> tuple[Plan, ...]:
    """The plans for values of one type that satisfy all of these schemas; the same objects for the same arguments."""
    if not nodes:
        return (_plan((), kind),)
    cache = nodes[0].schemas.plans
    if (nodes, kind) not in cache:
        found = []
        for conjunction in _conjunctions(nodes, kind):
            plan = _plan(tuple(conjunction.nodes), kind)
            if not conjunction.is_decided:
                plan.checked = plan.nodes
            if plan.is_possible:
                found.append(plan)
        cache[nodes, kind] = tuple(found)
    return cache[nodes, kind]


_FREE: dict[str, Plan] = {}


def _plan(nodes: tuple[Node, ...], kind: str) -> Plan:
    if not nodes and kind in _FREE:
        return _FREE[kind]
    makers = {"object": ObjectPlan, "array": ArrayPlan, "string": StringPlan, "number": NumberPlan}
    plan = makers[kind](nodes) if kind in makers else WordPlan(nodes, kind)
    if not nodes:
        _FREE[kind] = plan
    return plan


class _Conjunction:
    """Schemas that are known to apply, and alternatives of which one has not been chosen.

    ``is_decided``: whether no alternatives were left to the library.
    """

    def __init__(self, nodes: dict[Node, None], choices: list[Choice], is_decided: bool = True) -> None:
        self.nodes = nodes
        self.choices = choices
        self.is_decided = is_decided

    def with_nodes(self, added: Iterable[Node], kind: str) -> _Conjunction | None:
        """With further schemas; None if no value of this type satisfies one of them."""
        nodes = dict(self.nodes)
        choices = list(self.choices)
        queue = list(added)
        while queue:
            node = queue.pop(0)
            if node in nodes:
                continue
            if not node.may_be(kind):
                return None
            nodes[node] = None
            queue += node.conjuncts
            choices += node.choices
        return _Conjunction(nodes, choices, self.is_decided)


def _conjunctions(nodes: tuple[Node, ...], kind: str) -> list[_Conjunction]:
    """Every combination of alternatives that a value of this type may satisfy."""
    first = _Conjunction({}, []).with_nodes(nodes, kind)
    found = [] if first is None else [first]
    while any(one.choices for one in found):
        following: list[_Conjunction] = []
        for number, one in enumerate(found):
            following += _chosen(one, kind, most=MOST_PLANS - len(following) - len(found) + number + 1)
        found = following
    return found


def _chosen(one: _Conjunction, kind: str, most: int) -> list[_Conjunction]:
    """A conjunction with each entry of its first choice, at most ``most`` of them; without the choice if not."""
    if not one.choices:
        return [one]
    rest = _Conjunction(one.nodes, one.choices[1:], one.is_decided)
    options = [rest.with_nodes(option, kind) for option in one.choices[0]]
    possible = [option for option in options if option is not None]
    return possible if len(possible) <= most else [_Conjunction(one.nodes, one.choices[1:], is_decided=False)]
