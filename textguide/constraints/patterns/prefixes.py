"""A pattern rewritten for questions about prefixes.

The partial matching of ``regex`` reports that a text can be continued as soon as any attempt reaches the end of the
text and needs another character. It reports too little for constructs that look at the end of the text and decide:
``\\b``, ``$``, ``\\Z`` and the like hold or fail there, and may do the opposite once more text follows. They are
rewritten to need a character first. It reports too much for lookaheads that reach the end immediately (``(?!.*b)``);
they are rewritten so that the characters of the text decide.
"""

from __future__ import annotations

from .tokens import Token, flags_of, folds_fully

_NEEDS_CHARACTER = r"(?=(?s:.))"
"""Needs a character: at the end of the text, the partial match is found here."""
_NEEDS_MORE_THAN_NEWLINE = r"(?=[^\n\r\x0B\x0C\x1C-\x1E\x85\u2028\u2029]|(?s:...))"
"""The same before ``$``, which also holds before a newline that is the last character."""
_NEVER = "(?!)"
_DECIDABLE = frozenset(
    ["character", "quantifier", "bar", "close", "comment", "group", "capture", "boundary", "end", "start", "reference"]
)
"""Kinds of tokens that a lookahead may contain if the characters of the text decide it."""
_UNDECIDABLE_PATTERN = frozenset(["call", "conditional", "verb", "fuzzy"])
"""Kinds of tokens with which no lookahead of a pattern is decided."""
_TRANSPARENT = frozenset(["group", "capture", "branch reset"])
"""Kinds of brackets that may be around such a lookahead: those that do not commit to their first choice."""
_REPEATED = _TRANSPARENT | {"atomic"}


def for_prefixes(tokens: list[Token]) -> str | None:
    """A pattern with a partial match for every text that some continuation turns into a match of the original pattern.

    Returns:
        None if there is no such pattern, so that every text has to be accepted as a prefix.
    """
    kinds = {token.kind for token in tokens}
    flags = flags_of(tokens)
    if not _is_rewritable(kinds, flags):
        return None
    decided = _decided(tokens, kinds, flags)
    final_anchors = set() if "call" in kinds else _final_anchors(tokens)
    parts = []
    for at, token in enumerate(tokens):
        text = "" if at in final_anchors else _rewritten(token, decided.get(at))
        parts.append(_before_quantifier(tokens, at, text, at in decided))
    return "".join(parts)


def _is_rewritable(kinds: set[str], flags: str) -> bool:
    looks_at_end = kinds & {"boundary", "end", "cluster"}
    if "r" in flags:
        return False  # matches from the end
    if "w" in flags and (looks_at_end or "start" in kinds):
        return False  # Unicode's word boundaries look further ahead than one character
    # Errors of fuzzy matching are counted differently at the end of the text.
    return not ("fuzzy" in kinds and (looks_at_end or "lookaround" in kinds or {"b", "e"} & set(flags)))


def _before_quantifier(tokens: list[Token], at: int, text: str, is_decided: bool) -> str:
    """The rewritten text of a token, with an alternative that never matches if ``regex`` needs it.

    Some repetitions do not report that they need more of what they repeat if the part after them fails, as a lookbehind
    may: a lazy one of one character, and a greedy one of several. Alternatives are not affected.
    """
    token = tokens[at]
    quantifier = _next(tokens, at)
    if quantifier is None or quantifier.kind != "quantifier":
        return text
    if token.kind == "close" and tokens[token.partner].kind in _REPEATED:
        return f"|{_NEVER})"
    is_lazy = quantifier.text[-1] == "?" and quantifier.text != "?"
    if token.kind == "character" and is_lazy and not is_decided:
        return f"(?:{text}|{_NEVER})"
    return text


def _rewritten(token: Token, in_negative: bool | None) -> str:
    """The text that replaces a token.

    Args:
        in_negative: for a token in a lookahead that the characters of the text decide, whether the lookahead is
            negative. A match in a negative one must not need more characters; a match in a positive one must not be
            missed because the rest may still come. None: the token is somewhere else.
    """
    text = token.text
    if in_negative is None:
        if token.kind == "boundary" or text in ("\\Z", "\\z"):
            return f"(?:{_NEEDS_CHARACTER}{text})"
        if token.kind == "end":
            return f"(?:{_NEEDS_MORE_THAN_NEWLINE}{text})"
        return f"(?:{text}{_NEEDS_CHARACTER})" if token.kind == "cluster" else text
    if token.kind == "end" and in_negative:
        return _NEVER
    if token.kind in ("character", "reference", "boundary", "end"):
        return rf"(?:(?!\Z){text})" if in_negative else rf"(?:\Z|{text})"
    return text


def _final_anchors(tokens: list[Token]) -> set[int]:
    """The indices of anchors after which nothing follows: a match of the whole text ends there in any case."""
    indices = set()
    closed = -1
    for at, token in enumerate(tokens):
        closed = max(closed, token.partner)
        following = _next(tokens, at)
        if at > closed and token.kind == "end" and (following is None or following.kind == "bar"):
            indices.add(at)
    return indices


def _decided(tokens: list[Token], kinds: set[str], flags: str) -> dict[int, bool]:
    """The tokens in lookaheads that the characters of the text decide, by index: whether the lookahead is negative."""
    if folds_fully(tokens) or "p" in flags or kinds & _UNDECIDABLE_PATTERN:
        return {}
    decided: dict[int, bool] = {}
    brackets: list[int] = []  # those that are open
    for at, token in enumerate(tokens):
        is_reachable = token.text in ("(?=", "(?!") and all(_backtracks(tokens, bracket) for bracket in brackets)
        if is_reachable and _is_decidable(token, tokens[at + 1 : token.partner], "reference" in kinds):
            decided.update(dict.fromkeys(range(at + 1, token.partner), token.text == "(?!"))
        if token.kind == "close":
            brackets.pop()
        elif token.partner >= 0:
            brackets.append(at)
    return decided


def _is_decidable(look: Token, inside: list[Token], has_references: bool) -> bool:
    """Whether the characters of the text can decide a lookahead that contains these tokens."""
    if look.text == "(?=" and has_references and any(token.kind == "capture" for token in inside):
        return False  # what a positive lookahead captures may be compared later
    return all(token.kind in _DECIDABLE and not _is_possessive(token) for token in inside)


def _backtracks(tokens: list[Token], bracket: int) -> bool:
    """Whether a bracket tries its other choices if what follows it fails."""
    quantifier = _next(tokens, tokens[bracket].partner)
    return tokens[bracket].kind in _TRANSPARENT and not (quantifier and _is_possessive(quantifier))


def _is_possessive(token: Token) -> bool:
    return token.kind == "quantifier" and len(token.text) > 1 and token.text[-1] == "+"


def _next(tokens: list[Token], at: int) -> Token | None:
    """The token after an index, comments left out."""
    return next((token for token in tokens[at + 1 :] if token.kind != "comment"), None)
