"""A pattern rewritten for questions about prefixes.

``regex``'s partial matching says that a text can go on as soon as any attempt comes to the end of the text and wants
another character. What is then missing are the places where an engine looks at the end and decides: ``\\b``, ``$``,
``\\Z`` and their like hold or fail at the end of a text, and may do the opposite once it goes on. Here they first ask
for a character. Where it says too much are lookaheads, which come to the end at once (``(?!.*b)``); here they are
decided by what is there.
"""

from __future__ import annotations

from .tokens import Token, flags_of, folds_fully

_MORE = r"(?=(?s:.))"
"""Wants a character: at the end of the text, the partial match is found here."""
_BEHIND_A_LINE = r"(?=[^\n\r\x0B\x0C\x1C-\x1E\x85\u2028\u2029]|(?s:...))"
"""The same in front of ``$``, which also holds before a newline that is the last character."""
_NEVER = "(?!)"
_PLAIN = frozenset(
    ["character", "quantifier", "bar", "close", "comment", "group", "capture", "boundary", "end", "start", "reference"]
)
"""What may stand in a lookahead that is decided by the characters there are."""
_AROUND = frozenset(["group", "capture", "branch reset"])
"""What may stand around such a lookahead: nothing that keeps to its first choice."""

_REPEATED = _AROUND | {"atomic"}


def for_prefixes(tokens: list[Token]) -> str | None:
    """The pattern whose partial match every text has that some continuation makes a match of the pattern itself.

    Returns:
        None: nothing is known, so that every text has to be taken for a prefix.
    """
    kinds = {token.kind for token in tokens}
    flags = flags_of(tokens)
    looks = kinds & {"boundary", "end", "cluster"}
    if "r" in flags or ("w" in flags and (looks or "start" in kinds)):
        return None  # matches from the end, or looks further ahead than one character
    if "fuzzy" in kinds and (looks or "lookaround" in kinds or {"b", "e"} & set(flags)):
        return None  # errors are counted in another way at the end
    decided = _decided(tokens, kinds, flags)
    lasts = set() if "call" in kinds else _last_ends(tokens)
    out = []
    for at, token in enumerate(tokens):
        text = "" if at in lasts else _rewritten(token, decided.get(at))
        behind = _behind(tokens, at)
        if behind and behind.kind == "quantifier":
            # Some repeats forget to say that they want more of what they repeat where what follows them fails, as a
            # lookbehind may: a lazy one of one character, a greedy one of several. Alternatives are not looked into.
            if token.kind == "close" and tokens[token.partner].kind in _REPEATED:
                text = f"|{_NEVER})"
            elif token.kind == "character" and at not in decided and behind.text[-1] == "?" != behind.text:
                text = f"(?:{text}|{_NEVER})"
        out.append(text)
    return "".join(out)


def _rewritten(token: Token, negative: bool | None) -> str:
    """A token in place of itself.

    Args:
        negative: whether it stands in a negative lookahead that is decided by the characters there are, where a match
            must not need more; in a positive one it must not be missed that the rest may still come. None: elsewhere.
    """
    text = token.text
    if negative is None:
        if token.kind == "boundary" or text in ("\\Z", "\\z"):
            return f"(?:{_MORE}{text})"
        if token.kind == "end":
            return f"(?:{_BEHIND_A_LINE}{text})"
        return f"(?:{text}{_MORE})" if token.kind == "cluster" else text
    if token.kind == "end" and negative:
        return _NEVER
    if token.kind in ("character", "reference", "boundary", "end"):
        return rf"(?:(?!\Z){text})" if negative else rf"(?:\Z|{text})"
    return text


def _last_ends(tokens: list[Token]) -> set[int]:
    """The places of anchors behind which nothing comes: a match of the whole text ends there anyhow."""
    found, closed = set(), -1
    for at, token in enumerate(tokens):
        closed = max(closed, token.partner)
        behind = _behind(tokens, at)
        if at > closed and token.kind == "end" and (behind is None or behind.kind == "bar"):
            found.add(at)
    return found


def _decided(tokens: list[Token], kinds: set[str], flags: str) -> dict[int, bool]:
    """The places in lookaheads that can be decided by the characters there are, and whether these are negative."""
    if folds_fully(tokens) or "p" in flags or kinds & {"call", "conditional", "verb", "fuzzy"}:
        return {}
    found: dict[int, bool] = {}
    around: list[int] = []
    for at, token in enumerate(tokens):
        if token.text in ("(?=", "(?!") and all(_is_free(tokens, bracket) for bracket in around):
            inside = tokens[at + 1 : token.partner]
            held = token.text == "(?=" and "reference" in kinds and any(part.kind == "capture" for part in inside)
            if not held and all(part.kind in _PLAIN and not _is_possessive(part) for part in inside):
                found.update(dict.fromkeys(range(at + 1, token.partner), token.text == "(?!"))
        if token.kind == "close":
            around.pop()
        elif token.partner >= 0:
            around.append(at)
    return found


def _is_free(tokens: list[Token], bracket: int) -> bool:
    behind = _behind(tokens, tokens[bracket].partner)
    return tokens[bracket].kind in _AROUND and not (behind and _is_possessive(behind))


def _is_possessive(token: Token) -> bool:
    return token.kind == "quantifier" and len(token.text) > 1 and token.text[-1] == "+"


def _behind(tokens: list[Token], at: int) -> Token | None:
    return next((token for token in tokens[at + 1 :] if token.kind != "comment"), None)
