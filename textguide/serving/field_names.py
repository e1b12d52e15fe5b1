"""Fields of requests that no server knows, but that somebody meant as a field of guidance."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

ELSEWHERE = {
    "cfg": "guidance",
    "cfgscale": "guidance_scale",
    "cfgweight": "guidance_scale",
    "cfgcoef": "guidance_scale",
    "cfgalpha": "guidance_scale",
    "gamma": "guidance_scale",
    "scale": "guidance_scale",
    "unconditionalguidancescale": "guidance_scale",
    "classifierfreeguidance": "guidance",
    "classifierfreeguidancescale": "guidance_scale",
    "guide": "guidance",
    "guided": "guidance",
    "method": "guidance",
    "negprompt": "negative_prompt",
    "uncondprompt": "negative_prompt",
    "unconditionalprompt": "negative_prompt",
    "guidedjson": "awrs_json_schema",
    "guidedregex": "awrs_regex",
    "guidedchoice": "awrs_regex",
    "guidedgrammar": "awrs_grammar",
    "guideddecodingbackend": "awrs_regex",
    "guidedwhitespacepattern": "awrs_json_schema",
}
"""Names that other servers and libraries use, without underscores, and the arguments for the same here."""
CLOSE = 0.8
"""How alike a name must be to be taken for a mistake, as ``difflib`` measures it."""
LONGEST = 60
"""Characters of a name that are compared."""
MOST = 500
"""Fields of a request that are compared."""
FREE = (
    "response_format", "structured_outputs", "metadata", "logit_bias", "tool_choice", "text", "prompt", "output_config",
    "output_format",
)  # fmt: skip
"""Fields whose objects are the client's own: schemas, labels, token ids."""


@lru_cache(maxsize=4096)
def meant(name: str, known: tuple[str, ...], prefixes: tuple[str, ...] = ()) -> str | None:
    """The known field that an unknown one must have meant; None if it is another matter.

    Args:
        name: of a field that is not in ``known``.
        known: names of the fields of guidance.
        prefixes: whatever starts with one of these is one of them too.
    """
    plain = _plain(name[:LONGEST])
    by_plain = {_plain(one): one for one in known}
    close = difflib.get_close_matches(plain, list(by_plain), n=1, cutoff=CLOSE)
    if close:
        return by_plain[close[0]]
    if ELSEWHERE.get(plain) in known:
        return ELSEWHERE[plain]
    if plain.startswith(prefixes):
        nearest = difflib.get_close_matches(plain, list(by_plain), n=1, cutoff=0.0)
        return by_plain[nearest[0]]
    return None


def hidden(values: Mapping[str, Any], known: tuple[str, ...], prefixes: tuple[str, ...] = ()) -> str | None:
    """The path of a field of guidance inside an object of a request, where no server would read it; None if there is
    none.

    Args:
        values: the request.
        known: names of the fields of guidance.
        prefixes: as for :func:`meant`.

    Raises:
        ValueError: there are too many fields to look at.
    """
    seen = 0
    left = [(key, value) for key, value in values.items() if isinstance(value, Mapping) and key not in FREE]
    while left:
        place, inside = left.pop()
        seen += len(inside)
        check_number(seen)
        for key, value in inside.items():
            if key in known or meant(key, known, prefixes) is not None:
                return f"{place}.{key}"
            if isinstance(value, Mapping):
                left.append((f"{place}.{key}", value))
    return None


def check_number(count: int) -> None:
    """Refuse a request whose names would take long to compare.

    Raises:
        ValueError: it has more than :data:`MOST` fields.
    """
    if count > MOST:
        raise ValueError(f"the request has more than {MOST} fields in one object; send fewer")


def named_field(message: str, names: Collection[str], sent: Collection[str] = ()) -> str | None:
    """The field that an error is about: the first in its message of those that were sent, or of all.

    Args:
        message: of the error.
        names: the fields of a server.
        sent: those of the request.
    """
    pattern = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    found = re.findall(rf"(?<![\w.-])({pattern})(?![\w-])", message)
    return next((name for name in found if name in sent), found[0] if found else None)


def _plain(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
