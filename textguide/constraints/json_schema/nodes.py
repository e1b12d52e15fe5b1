"""Schemas as nodes: keywords that count in their draft, references followed, and verdicts about finished values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import cached_property
from typing import Any

from ..arguments import shortened
from . import drafts, ecma_patterns, formats
from .numbers import NumberRange, exactly, fraction_of
from .references import known_definitions
from .relaxation import ASSERTIONS, SUBSCHEMAS, children

KINDS = ("object", "array", "string", "number", "boolean", "null")
"""Types that the first character of a value decides; integers are numbers."""
NUMBER_KEYWORDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_CHECKED = {
    *("not", "oneOf", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems"),
    *("dependencies", "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$recursiveRef"),
}
"""Keywords that the library checks when a value ends."""
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
_KEYWORDS_WITHOUT_FUNCTION = ("then", "else", "minContains", "maxContains")
"""Keywords that ``jsonschema`` reads together with another one."""
Choice = tuple[tuple["Node", ...], ...]
"""Schemas of which a value must satisfy all of at least one entry."""


class Node:
    """One schema, in the place where it is.

    Args:
        schemas: the whole schema.
        contents: the schema, a dict or bool.
        resolver: follows its references.
    """

    def __init__(self, schemas: Schemas, contents: Any, resolver: Any) -> None:
        self.schemas = schemas
        self.contents = contents
        self._resolver = resolver
        self._known: dict[Any, bool] = {}

    def __repr__(self) -> str:
        return f"Node({shortened(repr(self.contents))})"

    @cached_property
    def keywords(self) -> Mapping[str, Any]:
        """The keywords that count, with their values; none for True and False."""
        if not isinstance(self.contents, dict):
            return {}
        if self.schemas.references_hide and "$ref" in self.contents:
            return {"$ref": self.contents["$ref"]}
        return {name: value for name, value in self.contents.items() if name in self.schemas.keywords}

    @property
    def is_false(self) -> bool:
        """Whether it is the schema False, which no value satisfies."""
        return self.contents is False

    # -- schemas for the same value --------------------------------------------------------------------------------

    @cached_property
    def conjuncts(self) -> tuple[Node, ...]:
        """Other schemas that every value of this one satisfies: references and ``allOf``."""
        found = [self._child(item) for item in self.keywords.get("allOf", ())]
        if "$ref" in self.keywords:
            found.append(self._resolved(self._resolver.lookup(self.keywords["$ref"])))
        if "$dynamicRef" in self.keywords:
            found.append(self._resolved(self._resolver.lookup(self.keywords["$dynamicRef"])))
        return tuple(found)

    @cached_property
    def choices(self) -> tuple[Choice, ...]:
        """What ``anyOf``, ``oneOf`` and ``if`` require at least."""
        found: list[Choice] = []
        for keyword in ("anyOf", "oneOf"):
            if keyword in self.keywords:
                found.append(tuple((self._child(item),) for item in self.keywords[keyword]))
        if "if" in self.keywords and "then" in self.keywords and "else" in self.keywords:
            condition, positive, negative = (self._child(self.keywords[name]) for name in ("if", "then", "else"))
            found.append(((condition, positive), (negative,)))
        return tuple(found)

    @cached_property
    def same_value(self) -> tuple[Node, ...]:
        """Every schema that this one itself may apply to the same value."""
        found = list(self.conjuncts)
        for keyword in ("anyOf", "oneOf"):
            found += [self._child(item) for item in self.keywords.get(keyword, ())]
        for keyword in ("if", "then", "else", "not"):
            if keyword in self.keywords:
                found.append(self._child(self.keywords[keyword]))
        for keyword in ("dependentSchemas", "dependencies"):
            for item in self.keywords.get(keyword, {}).values():
                if not isinstance(item, list):
                    found.append(self._child(item))
        return tuple(found)

    @cached_property
    def reachable(self) -> tuple[Node, ...]:
        """Every schema that may apply to the same value, this one included."""
        found: dict[Node, None] = {}
        queue = [self]
        while queue:
            node = queue.pop()
            if node not in found:
                found[node] = None
                queue += node.same_value
        return tuple(found)

    # -- verdicts --------------------------------------------------------------------------------------------------

    def may_be(self, kind: str) -> bool:
        """Whether a value of this type may satisfy the schema."""
        if self.is_false:
            return False
        values = self.values
        if values is not None and not any(kind_of(value) == kind for value in values):
            return False
        types = self.keywords.get("type")
        if types is None:
            return True
        types = [types] if isinstance(types, str) else types
        return kind in types or (kind == "number" and "integer" in types)

    @cached_property
    def values(self) -> list[Any] | None:
        """The values that ``const`` and ``enum`` list; None if they are not there."""
        if "const" in self.keywords:
            return [self.keywords["const"]]
        return self.keywords.get("enum")

    def is_valid(self, value: Any, key: Any) -> bool:
        """Whether a finished value satisfies the schema, by ``jsonschema``.

        Args:
            value: the value.
            key: identifies the value; answers are remembered by it. None: they are not.
        """
        if self.schemas.is_opaque and self is not self.schemas.root:
            return True
        answer = self._known.get(key) if key is not None else None
        if answer is None:
            validator = self.schemas.validator.evolve(schema=self.contents, _resolver=self._resolver)
            answer = bool(validator.is_valid(value))
            if key is not None:
                if len(self._known) > 4096:
                    self._known.clear()
                self._known[key] = answer
        return answer

    # -- schemas for parts of the value ----------------------------------------------------------------------------

    def named_properties(self) -> Mapping[str, Any]:
        """The schemas of ``properties``."""
        return self.keywords.get("properties", {})

    def patterns(self) -> Mapping[str, Any]:
        """The schemas of ``patternProperties``."""
        return self.keywords.get("patternProperties", {})

    def of_property(self, name: str) -> tuple[Node, ...]:
        """The schemas that a property must satisfy."""
        found = []
        if name in self.named_properties():
            found.append(self._child(self.named_properties()[name]))
        for pattern, schema in self.patterns().items():
            if ecma_patterns.matches(pattern, name):
                found.append(self._child(schema))
        if not found and "additionalProperties" in self.keywords:
            found.append(self._child(self.keywords["additionalProperties"]))
        return tuple(found)

    def child(self, keyword: str) -> Node | None:
        """The schema of a keyword that contains one; None if the keyword is not there."""
        return self._child(self.keywords[keyword]) if keyword in self.keywords else None

    def of_item(self, number: int) -> Node | None:
        """The schema of an item, counted from 0; None if there is none."""
        first = self.keywords.get("prefixItems")
        rest = "items"
        if first is None and isinstance(self.keywords.get("items"), list):
            first = self.keywords["items"]
            rest = "additionalItems"
        if first is not None and number < len(first):
            return self._child(first[number])
        return self.child(rest) if not isinstance(self.keywords.get(rest), list) else None

    @cached_property
    def number_range(self) -> NumberRange:
        """The numbers that the keywords for numbers allow."""
        keywords = self.keywords
        low = _bound(keywords, "minimum", "exclusiveMinimum")
        high = _bound(keywords, "maximum", "exclusiveMaximum")
        range_ = NumberRange()
        for bound, is_excluded in low:
            range_ = range_.both(NumberRange(low=fraction_of(bound), excludes_low=is_excluded))
        for bound, is_excluded in high:
            range_ = range_.both(NumberRange(high=fraction_of(bound), excludes_high=is_excluded))
        if "multipleOf" in keywords:
            range_ = range_.both(NumberRange(step=fraction_of(keywords["multipleOf"])))
        types = keywords.get("type", ())
        types = [types] if isinstance(types, str) else types
        if "integer" in types and "number" not in types:
            is_draft_4 = self.schemas.draft == "4"
            range_ = range_.both(NumberRange(step=fraction_of(1), only_digits=is_draft_4))
        return range_

    @cached_property
    def number_values(self) -> list[NumberRange] | None:
        """A range for each number that the schema lists; None if it lists no values."""
        if self.values is None:
            return None
        return [exactly(fraction_of(value)) for value in self.values if kind_of(value) == "number"]

    # -- details ---------------------------------------------------------------------------------------------------

    def _child(self, contents: Any) -> Node:
        return self.schemas.node(contents, self._resolver, is_inner=True)

    def _resolved(self, resolved: Any) -> Node:
        return self.schemas.node(resolved.contents, resolved.resolver)


class Schemas:
    """A whole schema and its nodes.

    Args:
        schema: JSON text.
        draft: one of :data:`drafts.DRAFTS`; None: the schema decides.
        others: documents that references may lead to, by URI.
        asserts_formats: whether ``format`` restricts strings.

    Raises:
        MissingExtraError: the package ``jsonschema`` is not installed.
        ValueError: the schema is not valid in its draft, or a reference leads nowhere.
    """

    def __init__(self, schema: str, draft: str | None, others: Mapping[str, Any], asserts_formats: bool) -> None:
        contents = json.loads(schema, parse_float=Decimal)
        self.draft = drafts.draft_of(contents, draft)
        drafts.refuse_vocabularies(contents, others)
        if isinstance(contents, dict) and "$schema" not in contents and draft is None:
            contents = drafts.modernized(contents)
        contents = drafts.without_dialects(contents)
        self._class = drafts.validator_class(self.draft, asserts_formats)
        self.keywords = frozenset({*self._class.VALIDATORS, *_KEYWORDS_WITHOUT_FUNCTION})
        self.references_hide = self.draft in ("4", "6", "7")
        self._check(contents, schema)
        registry, resolver = self._registry(contents, others)
        self.validator = self._class(contents, registry=registry)
        self._specification = drafts.specification(self.draft)
        self.is_opaque = "$recursiveRef" in schema
        """Whether schemas may mean something else inside a document than alone: only whole documents are validated."""
        self._is_dynamic = any(name in schema for name in _DYNAMIC) or any(
            name in json.dumps(other) for other in others.values() for name in _DYNAMIC
        )
        self.asserts_formats = asserts_formats
        self.plans: dict[Any, Any] = {}
        """Plans of :mod:`plans`, by the schemas and the type of the value."""
        self._nodes: dict[Any, Node] = {}
        self._kept: list[Any] = []
        self.root = self.node(contents, resolver)
        self.nodes = self._follow_all(schema)
        """All schemas that a document may reach."""

    def enforcement(self) -> dict[str, set[str]]:
        """The keywords that are ``masked`` and ``checked``, and the formats that are ``ignored``.

        A keyword that is masked in one place and checked in another is in both.
        """
        found: dict[str, set[str]] = {"masked": set(), "checked": set(), "ignored": set()}
        for node in self.nodes:
            for keyword, value in node.keywords.items():
                if keyword == "format" and not (self.asserts_formats and value in formats.KNOWN):
                    found["ignored"].add(str(value))
                elif keyword in _CHECKED or _is_hard(keyword, value):
                    found["checked"].add(keyword)
                elif keyword in ASSERTIONS or keyword in SUBSCHEMAS:
                    found["masked"].add(keyword)
        return found

    def node(self, contents: Any, resolver: Any, is_inner: bool = False) -> Node:
        """The node of a schema; the same object for the same schema in the same place."""
        if is_inner and isinstance(contents, dict):
            resolver = resolver.in_subresource(self._specification.create_resource(contents))
        # Only the outermost place of each document counts in the dynamic scope, so there are finitely many nodes.
        scope: Any = ()
        if self._is_dynamic:
            scope = tuple(dict.fromkeys(reversed([uri for uri, _ in resolver.dynamic_scope()])))
        key = (contents if isinstance(contents, bool) else id(contents), resolver._base_uri, scope)
        if key not in self._nodes:
            self._kept.append(contents)  # an id is only unique while the object lives
            self._nodes[key] = Node(self, contents, resolver)
        return self._nodes[key]

    def _check(self, contents: Any, schema: str) -> None:
        """Refuse a schema that is not valid in its draft, or that has a pattern that cannot be read."""
        error = drafts.error_of_schema(self.draft, contents)
        if error is not None:
            path = "".join(f"[{part!r}]" for part in error.absolute_path)
            raise ValueError(
                f"schema={shortened(schema)} is not valid in draft {self.draft}: {shortened(str(error.message))}"
                f"{' at ' + path if path else ''}"
            )
        for node in drafts.subschemas(contents):
            patterns = [*(node.get("patternProperties") or ())]
            if isinstance(node.get("pattern"), str):
                patterns.append(node["pattern"])
            for pattern in patterns:
                try:
                    ecma_patterns.compiled(pattern)
                except ValueError as error:
                    raise ValueError(f"schema={shortened(schema)}: {error}") from None

    def _registry(self, contents: Any, others: Mapping[str, Any]) -> tuple[Any, Any]:
        specification = drafts.specification(self.draft)
        resources = []
        for uri, other in others.items():
            # Documents of another draft are left out: a reference to one leads nowhere.
            if drafts.named_draft(other) in (None, self.draft):
                resources.append((uri, specification.create_resource(drafts.without_dialects(other))))
        root = specification.create_resource(contents)
        uri = root.id() or ""
        registry = _specifications().with_resources(resources).with_resource(uri, root).crawl()
        return registry, registry.resolver(uri)

    def _follow_all(self, schema: str) -> set[Node]:
        """Follow every reference that a document may reach, once; returns all schemas on the way.

        Raises:
            ValueError: one leads nowhere.
        """
        from referencing.exceptions import Unresolvable

        seen: set[Node] = set()
        queue = [self.root]
        while queue:
            node = queue.pop()
            if node in seen:
                continue
            seen.add(node)
            try:
                queue += node.conjuncts
            except (Unresolvable, ValueError, KeyError, IndexError, TypeError, AttributeError):
                names = [name for name in ("$ref", *_DYNAMIC) if name in node.keywords]
                raise ValueError(_leads_nowhere(schema, names[0], node.keywords[names[0]])) from None
            for other in node.conjuncts:
                if not isinstance(other.contents, (dict, bool)):
                    raise ValueError(_leads_nowhere(schema, "$ref", node.keywords.get("$ref")))
            queue += _inner_nodes(node)
        _refuse_endless(seen, schema)
        return seen


def _specifications() -> Any:
    """The metaschemas of all drafts."""
    from jsonschema.validators import SPECIFICATIONS

    return SPECIFICATIONS


def _is_hard(keyword: str, value: Any) -> bool:
    """Whether a pattern or format cannot be decided before the end of a string."""
    if keyword == "pattern":
        return ecma_patterns.automaton_of(value) is None
    if keyword == "patternProperties":
        return any(ecma_patterns.automaton_of(pattern) is None for pattern in value)
    return keyword == "format" and (value in formats.CONDITIONS or formats.automaton_of(value) is None)


def _inner_nodes(node: Node) -> Iterator[Node]:
    for _, _, contents in children(dict(node.keywords)):
        yield node._child(contents)


def _refuse_endless(nodes: set[Node], schema: str) -> None:
    """Refuse schemas that apply themselves to the same value again: no validator would ever come to an end."""
    finished: set[Node] = set()
    for start in nodes:
        path = {start: iter(start.same_value)}
        while path:
            node = next(reversed(path))
            following = next(path[node], None)
            if following is None:
                del path[node]
                finished.add(node)
            elif following in path:
                raise ValueError(
                    f"schema={shortened(schema)}: {shortened(repr(following.contents))} requires itself of the same "
                    "value, which no validator can decide; let the reference apply to a part of it, such as a property"
                )
            elif following not in finished:
                path[following] = iter(following.same_value)


def _leads_nowhere(schema: str, keyword: str, reference: Any) -> str:
    return (
        f"schema={shortened(schema)}: {keyword} {shortened(repr(reference))} leads nowhere in the schema, and nothing "
        "is fetched; name a part that it has, such as '#/$defs/NAME', or pass the other document in "
        f"schemas={{uri: schema}}{known_definitions(json.loads(schema))}"
    )


def _bound(keywords: Mapping[str, Any], name: str, exclusive: str) -> list[tuple[Any, bool]]:
    """The bounds on one side, and whether each is excluded; in draft 4, ``exclusive`` is True or False."""
    found = []
    is_excluded = keywords.get(exclusive)
    if name in keywords:
        found.append((keywords[name], is_excluded is True))
    if is_excluded is not None and not isinstance(is_excluded, bool):
        found.append((is_excluded, True))
    return found


def kind_of(value: Any) -> str:
    """The type of a value in JSON."""
    if isinstance(value, bool):
        return "boolean"
    names = {str: "string", int: "number", float: "number", Decimal: "number", list: "array", dict: "object"}
    return names.get(type(value), "null")
