"""Formats of strings, as their specifications define them, and patterns from which prefixes are judged."""

from __future__ import annotations

import ipaddress
import re
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

from ...support.errors import MissingExtraError
from ..automata.expressions import ByteAutomaton
from . import ecma_patterns

# -- dates and times: RFC 3339 -----------------------------------------------------------------------------------------

_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_SHORT_MONTHS = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8])"
_DAY = f"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|{_SHORT_MONTHS})"
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)"
_HOUR = "(?:[01][0-9]|2[0-3])"
_MINUTE = "[0-5][0-9]"
_OFFSET = f"(?:[Zz]|[+-]{_HOUR}:{_MINUTE})"
_TIME = f"{_HOUR}:{_MINUTE}:(?:[0-5][0-9]|60)(?:\\.[0-9]+)?{_OFFSET}"
_LEAP_SECOND = re.compile(r"([0-9]{2}):([0-9]{2}):60(?:\.[0-9]+)?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))\Z")
_CLOCK = "[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S"
_DAYS = "[0-9]+D|[0-9]+M(?:[0-9]+D)?|[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?"
_DURATION = f"P(?:[0-9]+W|(?:{_DAYS})(?:T(?:{_CLOCK}))?|T(?:{_CLOCK}))"

# -- addresses: RFC 3986, 3987, 6570, 5321 -----------------------------------------------------------------------------

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = f"{_OCTET}(?:\\.{_OCTET}){{3}}"
_IPV6 = "[0-9A-Fa-f:.]{2,45}"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = f"{_LABEL}(?:\\.{_LABEL})*"
_UUID = "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
_RELATIVE_POINTER = f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})"
_HEX = "%[0-9A-Fa-f]{2}"
_UCS = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U0001fffd\U00020000-\U0002fffd\U00030000-\U000efffd"
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"


def _address(other: str, private: str, is_reference: bool) -> str:
    """The pattern of a URI or IRI.

    Args:
        other: further characters that are allowed anywhere.
        private: further characters that are allowed in a query.
        is_reference: whether the scheme may be missing.
    """
    plain = f"A-Za-z0-9._~!$&'()*+,;=\\-{other}"
    segment = f"(?:[{plain}:@]|{_HEX})"
    host = f"(?:\\[(?:{_IPV6}|[vV][0-9A-Fa-f]+\\.[A-Za-z0-9._~!$&'()*+,;=:-]+)\\]|(?:[{plain}]|{_HEX})*)"
    authority = f"(?:(?:[{plain}:]|{_HEX})*@)?{host}(?::[0-9]*)?"
    rest = f"(?:/{segment}*)*"
    absolute = f"/(?:{segment}+{rest})?"
    query = f"(?:\\?(?:[{plain}:@/?{private}]|{_HEX})*)?"
    fragment = f"(?:#(?:[{plain}:@/?]|{_HEX})*)?"
    whole = f"[A-Za-z][A-Za-z0-9+.-]*:(?://{authority}{rest}|{absolute}|{segment}+{rest}|){query}{fragment}"
    if not is_reference:
        return whole
    first = f"(?:[{plain}@]|{_HEX})+"
    return f"(?:{whole}|(?://{authority}{rest}|{absolute}|{first}{rest}|){query}{fragment})"


_VARIABLE = f"(?:[A-Za-z0-9_]|{_HEX})(?:\\.?(?:[A-Za-z0-9_]|{_HEX}))*(?::[1-9][0-9]{{0,3}}|\\*)?"
_TEMPLATE = f'(?:[^\\x00-\\x20\\x7f-\\x9f"%<>\\\\^`{{|}}]|{_HEX}|\\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\\}})*'


def _mailbox(other: str, domain: str) -> str:
    """The pattern of an email address; ``other``: further characters of its local part."""
    atom = f"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{other}-]+"
    quoted = f'"(?:[ !#-\\[\\]-~{other}]|\\\\[ -~])*"'
    literal = f"\\[(?:{_IPV4}|IPv6:{_IPV6})\\]"
    return f"(?:{atom}(?:\\.{atom})*|{quoted})@(?:{domain}|{literal})"


PATTERNS: dict[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": _DURATION,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "hostname": _HOSTNAME,
    "uuid": _UUID,
    "json-pointer": _POINTER,
    "relative-json-pointer": _RELATIVE_POINTER,
    "uri": _address("", "", is_reference=False),
    "uri-reference": _address("", "", is_reference=True),
    "iri": _address(_UCS, _PRIVATE, is_reference=False),
    "iri-reference": _address(_UCS, _PRIVATE, is_reference=True),
    "uri-template": _TEMPLATE,
    "email": _mailbox("", _HOSTNAME),
    "idn-email": _mailbox("\u0080-\U0010ffff", "[^@\\s]+"),
}
"""A pattern of each format that has one; some formats have a condition in addition."""
_ONLY_PYTHON = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:[P#>(|&+-]|[a-zA-Z0-9])|\\[aAzZGKRXhHeQ])")
_LARGE = ("iri", "iri-reference", "idn-email", "uri-template")
"""Formats whose automata take seconds to build."""
_ANSWERS = 4096


def _is_time(text: str) -> bool:
    """Whether a leap second of a time is the last one of a day in UTC."""
    match = _LEAP_SECOND.search(text)
    if match is None:
        return True
    minutes = 60 * int(match[1]) + int(match[2])
    if match[3]:
        offset = 60 * int(match[4]) + int(match[5])
        minutes += offset if match[3] == "-" else -offset
    return minutes % (24 * 60) == 24 * 60 - 1


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def _has_ipv6(text: str) -> bool:
    """Whether an address in brackets, if there is one, is right."""
    match = re.search(r"\[(?:IPv6:)?([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*)\]", text)
    return match is None or _is_ipv6(match[1])


def _is_hostname(text: str) -> bool:
    labels = text.split(".")
    if len(text) > 253:
        return False
    return all(_is_idn_label(label) for label in labels if label[:4].lower() == "xn--")


def _is_idn_label(label: str) -> bool:
    """Whether an encoded label is the code of one that may be encoded."""
    idna = _idna()
    try:
        return bool(idna.alabel(idna.ulabel(label)).decode() == label.lower())
    except (idna.IDNAError, UnicodeError):
        return False


def _is_idn_hostname(text: str) -> bool:
    idna = _idna()
    labels = re.split("[.。．｡]", text)
    if not all(labels):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            idna.encode(text)
            # If one label is written from right to left, the rules for such labels apply to all of them.
            if any(_is_right_to_left(label) for label in labels):
                for label in labels:
                    idna.check_bidi(label, check_ltr=True)
    except (idna.IDNAError, UnicodeError):
        return False
    return True


def _is_right_to_left(label: str) -> bool:
    import unicodedata

    return any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in label)


def _is_email(text: str) -> bool:
    domain = text.rpartition("@")[2]
    return _has_ipv6(domain) if domain.startswith("[") else _is_hostname(domain)


def _is_idn_email(text: str) -> bool:
    domain = text.rpartition("@")[2]
    return _has_ipv6(domain) if domain.startswith("[") else all(domain.split("."))


def _is_regex(text: str) -> bool:
    if _ONLY_PYTHON.search(text):
        return False
    try:
        ecma_patterns.compiled(text)
    except ValueError:
        return False
    return True


CONDITIONS: dict[str, Callable[[str], bool]] = {
    "time": _is_time,
    "date-time": _is_time,
    "ipv6": _is_ipv6,
    "hostname": _is_hostname,
    "idn-hostname": _is_idn_hostname,
    "email": _is_email,
    "idn-email": _is_idn_email,
    "uri": _has_ipv6,
    "uri-reference": _has_ipv6,
    "iri": _has_ipv6,
    "iri-reference": _has_ipv6,
    "regex": _is_regex,
    "ecmascript-regex": _is_regex,
}
"""What a format requires besides its pattern."""
KNOWN = frozenset({*PATTERNS, *CONDITIONS})
"""Formats that are asserted; others have no effect."""


@lru_cache(maxsize=_ANSWERS)
def conforms(name: Any, text: str) -> bool:
    """Whether a string has a format; True for a format that is not known.

    Raises:
        MissingExtraError: the format needs the package ``idna``, which is not installed.
    """
    pattern = _compiled(name) if name in PATTERNS else None
    if pattern is not None and not pattern.fullmatch(text):
        return False
    condition = CONDITIONS.get(name)
    return condition is None or condition(text)


@cache
def _compiled(name: str) -> re.Pattern[str]:
    return re.compile(PATTERNS[name])


@cache
def automaton_of(name: Any) -> ByteAutomaton | None:
    """An automaton that accepts every string of a format, and possibly others; None if there is no small one."""
    return ecma_patterns.automaton(PATTERNS[name]) if name in PATTERNS and name not in _LARGE else None


def _idna() -> Any:
    try:
        import idna
    except ImportError as error:
        raise MissingExtraError(
            "idna", "constraints", "the formats hostname, email and their international forms"
        ) from error
    return idna
