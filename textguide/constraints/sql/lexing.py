"""The tokens of SQL, and how names are spelled."""

from __future__ import annotations

import re

STANDARD = "standard"
DIALECTS = ("sqlite", STANDARD)
LONGEST_STRING = 100
"""Most characters of a string or a quoted name."""
LONGEST_NAME = 40
"""Most characters of a name that the query gives itself."""
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<word>[^\W\d]\w*)
    |(?P<number>\d+(?:\.\d*)?|\.\d+)
    |(?P<string>'(?:[^']|'')*'?)
    |(?P<quoted>"(?:[^"]|"")*"?|`[^`]*`?|\[[^\]]*\]?)
    |(?P<sign>->>|->|\|\||<<|<=|<>|<|>>|>=|>|==|=|!=|[-+*/%&|!~(),.;])
    |(?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)
SIGNS = ("->>", "->", "||", "<<", "<=", "<>", "<", ">>", ">=", ">", "==", "=", "!=", *"-+*/%&|~(),.;")
KEYWORDS = frozenset(
    """
    ALL AND AS ASC BETWEEN BY CASE CAST COLLATE CROSS CURRENT CURRENT_DATE CURRENT_TIME CURRENT_TIMESTAMP DELETE DESC
    DISTINCT ELSE END ESCAPE EXCEPT EXCLUDE EXISTS FILTER FIRST FOLLOWING FROM FULL GLOB GROUP GROUPS HAVING IF IN INNER
    INSERT INTERSECT INTO IS ISNULL JOIN LAST LEFT LIKE LIMIT MATERIALIZED NATURAL NO NOT NOTNULL NULL NULLS OFFSET ON
    OR ORDER OTHERS OUTER OVER PARTITION PRECEDING RANGE RECURSIVE REPLACE RIGHT ROW ROWS SELECT SET TIES THEN UNBOUNDED
    UNION UPDATE USING VALUES WHEN WHERE WINDOW WITH TRUE FALSE
    """.split()  # noqa: SIM905
)
"""SQLite's keywords (https://www.sqlite.org/lang_keywords.html) in queries. Many are names if the grammar has no
keyword there."""
RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create
    current_date current_time current_timestamp current_user default deferrable desc distinct do else end except
    false fetch for foreign from full grant group having in initially inner intersect into is join key lateral
    leading left like limit localtime localtimestamp natural not null offset on only or order outer placing primary
    references returning right select session_user set some symmetric table then to trailing true union unique user
    using values variadic when where window with
    """.split()  # noqa: SIM905
)
"""Words that PostgreSQL, MySQL or SQLite reserve; names that equal one of them are quoted."""
Token = tuple[str, str]
"""The kind of a token, a group of the expression above, and its text."""


def tokens_of(text: str) -> list[Token]:
    """The tokens of a text, with the spaces between them. The last token may be incomplete."""
    return [(match.lastgroup or "", match[0]) for match in _TOKEN.finditer(text)]


def is_closed(token: Token) -> bool:
    """Whether a string, or a quoted name, has its closing quotation mark."""
    kind, text = token
    if kind not in ("string", "quoted"):
        return True
    mark = "]" if text[0] == "[" else text[0]
    inside = text[1:]
    return inside.endswith(mark) and (len(inside) - len(inside.rstrip(mark))) % 2 == 1


def is_allowed(token: Token, dialect: str) -> bool:
    """Whether a token, which may be incomplete, has a form that queries may have here, whatever it means."""
    kind, text = token
    if kind == "space":
        return len(text) <= 9 and text.count("\n") <= 2 and not text.strip(" \t\r\n")
    if kind == "number":
        whole, _, fraction = text.partition(".")
        return len(whole) <= 15 and len(fraction) <= 6
    if kind in ("string", "quoted"):
        is_known = kind == "string" or dialect != STANDARD or text[0] == '"'
        characters = len(text) + (not is_closed(token))
        return is_known and characters <= LONGEST_STRING and "\n" not in text and "\0" not in text
    return kind in ("word", "sign")


def spelled(name: str, dialect: str) -> str:
    """A name as it is written in queries: quoted if necessary."""
    pattern = r"[a-z_][a-z0-9_]*" if dialect == STANDARD else r"[A-Za-z_][A-Za-z0-9_]*"
    if re.fullmatch(pattern, name) and name.lower() not in RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def plain(name: str) -> str:
    """A name without its quotation marks, in small letters."""
    if name[:1] in ('"', "`", "["):
        mark = "]" if name[0] == "[" else name[0]
        name = name[1:].removesuffix(mark).replace(mark * 2, mark)
    return name.lower()


def strict(name: str) -> str:
    """A name between quotation marks that SQLite never takes for those of a string."""
    return f"[{name}]" if "`" in name else f"`{name}`"
