"""Documents for JSON schemas: made by ``hypothesis-jsonschema``, spoilt here and there, and written in the order of
the schema's properties."""

from __future__ import annotations

import json
import random
import re
import warnings
from contextlib import suppress
from decimal import Decimal
from typing import Any

from hypothesis.internal.conjecture import utils as cu


def documents(schema: str, count: int, seed: int) -> list[Any]:
    """``count`` values of a schema, as many as can be made; the same ones for the same seed. Where it refers to itself,
    values of it that nest a few levels deep."""
    from hypothesis_jsonschema._canonicalise import HypothesisRefResolutionError

    try:
        return _documents(json.loads(schema), count, seed)
    except HypothesisRefResolutionError:
        whole = json.loads(schema)
        return _documents(unrolled(whole, whole), count, seed)


def unrolled(node: Any, root: Any, left: int = 3) -> Any:
    """``node`` with references written out, ``left`` within each other; further ones admit nothing."""
    if isinstance(node, list):
        return [unrolled(one, root, left) for one in node]
    if not isinstance(node, dict):
        return node
    reference = node.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        if not left:
            return False
        target = root
        for part in filter(None, reference[1:].split("/")):
            target = target[part.replace("~1", "/").replace("~0", "~")]
        return unrolled(target, root, left - 1)
    return {key: unrolled(one, root, left) for key, one in node.items() if key not in ("$defs", "definitions")}


def _documents(schema: Any, count: int, seed: int) -> list[Any]:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis.errors import HypothesisException
    from hypothesis_jsonschema import _from_schema, from_schema

    _from_schema.cu = _Utilities  # type: ignore[attr-defined]
    found: list[Any] = []
    quiet = settings(
        max_examples=count,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )

    @seeded(seed)
    @quiet
    @given(from_schema(schema, codec="ascii"))  # patterns are read as ECMAScript reads them: \\d is a digit of ASCII
    def collect(value: Any) -> None:
        found.append(plain(value))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(HypothesisException):  # it knows no such schema
            collect()
    return found


def plain(value: Any) -> Any:
    """The value with blanks in place of what Python alone, or ECMAScript alone, takes for a blank in a pattern."""
    if isinstance(value, dict):
        return {plain(name): plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return re.sub("[\x1c-\x1f\x85\ufeff]", " ", value) if isinstance(value, str) else value


class _Many(cu.many):
    """Hypothesis's loop as ``hypothesis-jsonschema`` calls it, which was written for an older one."""

    def more(self) -> bool:
        if not hasattr(self, "_turns"):
            self._turns = iter(self.__enter__())
        if next(self._turns, self) is self:
            self.__exit__(None, None, None)
            return False
        return True


class _Utilities:
    many = _Many


def spoilt(value: Any, draw: random.Random) -> Any:
    """A copy with one change somewhere, which a schema may or may not mind."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        how = draw.random()
        if how < 0.25:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.35:
            return {**value, "further": draw.choice((0, "x", None))}
        return {**value, key: spoilt(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        if draw.random() < 0.3:
            return [*value, value[place]]
        return [spoilt(one, draw) if number == place else one for number, one in enumerate(value)]
    return draw.choice((None, True, 0, -1, 7.5, "", "a", "2020-01-01", [], {}, [1], {"a": 1}, 10**6))


def written(value: Any) -> bytes:
    """A value as the engine writes it: what is no character to be seen is escaped, and numbers have no exponent."""
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f").encode()
    if isinstance(value, dict):
        return b"{" + b", ".join(written(key) + b": " + written(one) for key, one in value.items()) + b"}"
    if isinstance(value, list):
        return b"[" + b", ".join(map(written, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f").encode()
