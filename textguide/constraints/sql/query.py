"""The start of one query, read token by token.

Two oracles decide what may follow, and both are SQLite. Its grammar reports the first token that cannot follow. Its
compiler reports names that do not exist, on the query so far with its brackets closed, on a database without rows. Only
the second one needs the position in the text, because columns are written before their tables: the names of a list are
checked at the end of the FROM that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from .database import CALL_ERRORS, FINAL_ERRORS, JOINS, NAME_ERRORS, EmptyDatabase
from .lexing import (
    KEYWORDS,
    LONGEST_NAME,
    LONGEST_STRING,
    SIGNS,
    Token,
    is_allowed,
    is_closed,
    plain,
    strict,
    tokens_of,
)

WITH, LIST, FROM, DONE = "with", "list", "from", "done"
"""What a query consists of: its WITH, its columns, its tables, and the clauses after them."""
TABLE, COLUMN, OPERAND, DEFINITION, ALIAS, FREE = "table", "column", "operand", "definition", "alias", "free"
"""What a word means: a table, a column after a point, an operand of an expression, a name that the query gives to
something, the same without AS, and names of types and the like."""
_AFTER_TABLES = frozenset("where group having order limit window union except intersect".split())  # noqa: SIM905
_COMPOUND = frozenset(("union", "except", "intersect"))
_BEGINNINGS = frozenset(("select", "with"))
_AFTER_A_TABLE = tuple(
    """
    where group having order limit window union except intersect join left right full inner cross natural on using
    indexed
    """.split()  # noqa: SIM905
)
"""Words that may follow a table. An alias without AS does not start with one of them, so that a query is not led into
an alias by the first token of a clause that would be rejected."""
_OPERAND_ENDS = frozenset(
    "end null true false current_date current_time current_timestamp isnull notnull".split()  # noqa: SIM905
)
_TYPES = ("integer", "int", "real", "text", "numeric", "float", "double", "decimal", "varchar", "char", "date", "blob")
_COLLATIONS = ("binary", "nocase", "rtrim")


@dataclass
class Level:
    """The text between two brackets, or the whole text.

    Args:
        kind: what the bracket is: ``call``, ``cast``, ``source`` (a subquery in FROM), ``body`` (of a WITH), ``names``
            (definitions of columns), ``using``, or empty.
        name: the name of the WITH whose body it is.
        state: the part of the query that is being written; empty if it is not a query.
        begin_at: where the query begins, without its WITH.
        from_at: where its FROM begins.
        clause_at: where the expressions of its last clause begin; 0 if they have not begun.
        in_on: whether an expression is written in FROM.
        is_ordered: whether it has ORDER BY or LIMIT, after which no UNION may follow.
        open_words: CASE, WHEN, THEN and BETWEEN that wait for another word.
    """

    kind: str = ""
    name: str = ""
    state: str = ""
    begin_at: int = 0
    from_at: int = 0
    clause_at: int = 0
    in_on: bool = False
    is_ordered: bool = False
    open_words: tuple[str, ...] = ()

    def copy(self) -> Level:
        """An independent level."""
        other = Level.__new__(Level)
        other.__dict__.update(self.__dict__)
        return other


@dataclass(frozen=True)
class Words:
    """The words that are allowed in one place.

    Args:
        names: the names, in small letters.
        keywords: the keywords, in small letters.
        is_any: whether any name is allowed there.
        excluded: keywords that no name may start with.
    """

    names: frozenset[str] = frozenset()
    keywords: frozenset[str] = frozenset()
    is_any: bool = False
    excluded: tuple[str, ...] = ()
    starts: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        words = [*self.names, *self.keywords]
        object.__setattr__(self, "starts", frozenset(word[:end] for word in words for end in range(1, len(word) + 1)))

    def has_start(self, word: str) -> bool:
        """Whether one of the words starts with ``word``, which is in small letters."""
        if word in self.starts:
            return True
        return self.is_any and word.isascii() and len(word) <= LONGEST_NAME and not word.startswith(self.excluded)


NO_WORDS = Words()


class Query:
    """The start of a query. Its last token, ``pending``, may still grow; all others have been checked.

    Args:
        database: compiles queries.
        any_columns: whether the columns of a list may have names that are in no table and were not defined before.
    """

    def __init__(self, database: EmptyDatabase, any_columns: bool = False) -> None:
        self.database = database
        self.any_columns = any_columns
        self.read = ""  # all tokens but the last
        self.pending: Token = ("", "")
        self.syntax = ""  # the tokens that were read, as the grammar's cache needs them
        self.syntax_before = ""  # the same without the last one
        self.previous: Token = ("", "")
        self.before_previous: Token = ("", "")
        self.closed_level = ""  # the kind of the bracket that the previous token closed
        self.is_spaced = True  # whether a space is before the pending token
        self.must_call = False
        self.levels = [Level()]
        self.sources: frozenset[str] = frozenset()
        self.ctes: frozenset[str] = frozenset()
        self.aliases: frozenset[str] = frozenset()

    def copy(self) -> Query:
        """An independent query."""
        other = Query.__new__(Query)
        other.__dict__.update(self.__dict__)
        other.levels = [level.copy() for level in self.levels]
        return other

    @property
    def in_quotes(self) -> bool:
        """Whether the text ends inside a string or a quoted name."""
        return self.pending[0] in ("string", "quoted") and not is_closed(self.pending)

    def may_continue_with(self, first_bytes: bytes) -> bool:
        """Whether a character that starts with these bytes of UTF-8, but is not ASCII, may follow."""
        if not self.in_quotes:
            return False
        text = self.pending[1]
        if self.is_any_quoted():
            return len(text) + 1 < LONGEST_STRING
        start = text[1:].encode() + first_bytes
        return any(name.encode().startswith(start) for name in self._quoted_names(self._role()) or [])

    def is_any_quoted(self) -> bool:
        """Whether the open quotation marks are those of a string, or of a name that may be any."""
        kind, text = self.pending
        role = self._role()
        is_string = text[:1] == '"' and role in (OPERAND, ALIAS, DEFINITION) and not self.database.is_standard
        return kind == "string" or is_string or self._quoted_names(role) is None

    def extended(self, text: str) -> Query | None:
        """The query followed by ``text``; None if nothing continues that to a member."""
        tokens = tokens_of(self.pending[1] + text)
        if not tokens:
            return self
        query = self.copy()
        for token, following in pairwise(tokens):
            if not query._finish(token, following[1]):
                return None
        query.pending = tokens[-1]
        return query if query._pending_fits() else None

    def is_complete(self) -> bool:
        """Whether the text is a member."""
        query = self.copy()
        if not is_closed(self.pending) or not query._finish(self.pending, ""):
            return False
        if len(query.levels) > 1 or query.must_call:
            return False
        return bool(query.previous[1]) and not self.database.error_in(query.read.rstrip().removesuffix(";"))

    def words(self) -> tuple[Words, str]:
        """The words of which a part may be written next, and the part of them that is already written."""
        kind, text = self.pending
        if kind == "word":
            return self._words_here(), text.lower()
        query = self
        if text:
            query = self.copy()
            if not is_closed(self.pending) or kind == "number" or not query._finish(self.pending, "a"):
                return NO_WORDS, ""
            query.pending = ("", "")
        return query._words_here(), ""

    def may_follow(self, token: Token) -> bool:
        """Whether SQLite's grammar may have a token after the text, as far as that is known without reading it.

        Args:
            token: a token, which may be incomplete, and which may also continue the last one of the text.
        """
        kind, text = token
        pending = self.pending[0]
        if kind in ("space", "word") or pending not in ("", "space", "word") or text in (".", ";"):
            return True
        if kind == "number" and pending == "word":
            return True
        syntax = self.syntax
        if pending == "word":
            syntax += f" {_as_syntax(self.pending)}"
        if kind == "sign":
            return any(self.database.continues(f"{syntax} {sign}") for sign in SIGNS if sign.startswith(text))
        return self.database.continues(f"{syntax} {_as_syntax(token)}")

    # The last token

    def _pending_fits(self) -> bool:
        """Whether the last token can be, or become, one that is allowed there."""
        kind, text = self.pending
        if not is_allowed(self.pending, self.database.dialect):
            return False
        if self.previous[1] == ";":
            return False
        if kind == "space":
            return self.previous[1] != "."
        if kind == "word":
            return self._words_here().has_start(text.lower())
        if kind == "sign":
            return any(self._can_finish(("sign", sign)) for sign in SIGNS if sign.startswith(text)) or (
                text == "." and self._is_separate(("number", ".1")) and self._follows("1")
            )
        if kind == "quoted":
            return self._quoted_fits(text)
        return self._can_finish(("string", "''") if kind == "string" else ("number", "1"))

    def _can_finish(self, token: Token) -> bool:
        return self.copy()._finish(token, " ")

    def _quoted_fits(self, text: str) -> bool:
        role = self._role()
        if not self._follows("a") and not self._follows('"a"'):
            return False
        if self.is_any_quoted():  # SQLite takes unknown names in double quotation marks for strings
            return True
        names = self._quoted_names(role) or []
        mark = "]" if text[0] == "[" else text[0]
        quoted = [text[0] + name.replace(mark, mark * 2) + mark for name in names]
        if self.database.is_standard:
            return any(name.startswith(text) for name in quoted)
        return any(name.lower().startswith(text.lower()) for name in quoted)

    def _quoted_names(self, role: str) -> list[str] | None:
        """The names that may be in quotation marks; None for any."""
        if role in (ALIAS, DEFINITION, FREE):
            return None
        if role == TABLE:
            return [*(_unquoted(name) for name in self.database.spelled_tables), *self.ctes]
        names = [*self.database.spelled_columns, *self.database.spelled_tables]
        return [*(_unquoted(name) for name in names), *self.aliases, *self.sources]

    # Tokens that have ended

    def _finish(self, token: Token, following: str) -> bool:
        """Read a token that has ended, before the text ``following``; False if it is not allowed there."""
        kind, text = token
        if not text:
            return True
        if not is_allowed(token, self.database.dialect) or not is_closed(token):
            return False
        if kind == "space":
            self.read += text
            self.is_spaced = True
            return self.previous[1] not in (".", ";")
        if not self._is_separate(token) or (self.must_call and text != "("):
            return False
        if not self._keyword_fits(token):
            return False
        self.must_call = False
        role = self._role() if kind in ("word", "quoted") else ""
        if not self._syntax_follows(token):
            return False
        fits = self._finish_name(token, role, following) if role else self._finish_other(token)
        if not fits:
            return False
        self.read += text
        self.is_spaced = False
        self.before_previous = self.previous
        self.previous = token
        return self._compiles() if text == ")" or self._is_operand_end() else True

    def _keyword_fits(self, token: Token) -> bool:
        """Whether a keyword may be here, and after the beginning of a join nothing else."""
        kind, text = token
        if kind == "word" and text.lower() in _LOWER_KEYWORDS:
            return self._words_here().has_start(text.lower())
        return not self._is_join()

    def _is_separate(self, token: Token) -> bool:
        """Whether a token may come directly after the one before it, if there is no space."""
        kind, text = token
        if text == ".":
            return (
                not self.is_spaced
                and not self._is_table()
                and self.previous[0] in ("word", "quoted")
                and self.previous[1].lower() not in _OPERAND_ENDS
            )
        if self.is_spaced:
            return True
        last = self.previous[0]
        if kind in ("word", "string", "quoted", "number") and last in ("word", "number"):
            return False
        if kind in ("string", "quoted") and last in ("string", "quoted"):
            return False
        return not (kind == "sign" and (self.previous[1] + text).startswith(("--", "/*")))

    def _is_table(self) -> bool:
        """Whether the previous token is the name of a table in FROM, which has no point after it."""
        level = self.levels[-1]
        return level.state == FROM and not level.in_on and self.before_previous[1].lower() in ("from", "join", ",")

    def _syntax_follows(self, token: Token) -> bool:
        """Note a token for the grammar; whether it may follow."""
        text = token[1]
        if self.previous[1] == ";":
            return False
        if text == ";":
            return len(self.levels) == 1 and not self.database.error_in(self.read)
        self.syntax_before = self.syntax
        self.syntax = f"{self.syntax} {_as_syntax(token)}"
        return self.database.continues(self.syntax)

    def _follows(self, text: str) -> bool:
        return self.database.continues(f"{self.syntax} {text}")

    def _finish_other(self, token: Token) -> bool:
        """Read a sign, a number or a string; False if it is not allowed there."""
        text = token[1]
        level = self.levels[-1]
        if text == "(":
            return self._open()
        if text == ")":
            return self._close()
        if text == "," and level.state == FROM:
            level.in_on = False
        return text != "*" or self.previous[1] != "(" or self.before_previous[1].lower() == "count"

    # Brackets

    def _open(self) -> bool:
        word = self.previous[1].lower()
        level = self.levels[-1]
        if self.previous[0] == "word" and (word not in _LOWER_KEYWORDS or word in self.database.functions):
            if level.state == WITH:
                self.levels.append(Level("names"))
                return True
            self.levels.append(Level("call"))
            return word in self.database.functions
        kind = ""
        name = ""
        if level.state == WITH and word in ("as", "materialized"):
            kind = "body"
            name = level.name
        elif level.kind == "source" and not level.state:
            kind = "source"
        elif level.state == FROM and not level.in_on:
            kind = "using" if word == "using" else "source"
        elif word == "cast":
            kind = "cast"
        elif word in ("replace", "like", "glob", "if", "match"):
            kind = "call"
        self.levels.append(Level(kind, name))
        return True

    def _close(self) -> bool:
        if len(self.levels) == 1:
            return False
        level = self.levels[-1]
        if not self._end_tables(level):
            return False
        self.levels.pop()
        self.closed_level = level.kind
        return True

    def _end_tables(self, level: Level) -> bool:
        """Note that no more tables follow in a query, and check its list."""
        if level.state not in (FROM, LIST):
            return True
        level.state = DONE
        level.in_on = False
        return self._compiles()

    # Words

    def _role(self) -> str:
        """What a name means here."""
        kind, text = self.previous
        word = text.lower() if kind == "word" else text
        level = self.levels[-1]
        if word == "." or level.kind == "using":
            return COLUMN
        if level.kind == "names":
            return DEFINITION
        if level.state == WITH:
            return DEFINITION if word in ("with", "recursive", ",") else FREE
        return self._role_in_query(word, level)

    def _role_in_query(self, word: str, level: Level) -> str:
        """As :meth:`_role`, in the parts of a query that have expressions and tables."""
        if word in ("as", "window"):
            return FREE if level.kind == "cast" else DEFINITION
        if word in ("collate", "over"):
            return FREE
        if level.state == FROM and not level.in_on and word in ("from", "join", ","):
            return TABLE
        if self._is_operand_end():
            return ALIAS
        if level.kind == "source" and not level.state:
            return FREE
        return OPERAND

    def _is_operand_end(self) -> bool:
        """Whether the previous token ends an operand, so that a name after it is an alias without AS."""
        kind, text = self.previous
        if kind in ("number", "string", "quoted"):
            return True
        if kind == "word":
            return text.lower() not in _LOWER_KEYWORDS or text.lower() in _OPERAND_ENDS
        if text == "*":
            return self.before_previous[1].lower() in ("(", ",", ".", "select", "distinct", "all")
        return text == ")"

    def _finish_name(self, token: Token, role: str, following: str) -> bool:
        """Read a word or a quoted name that has ended; False if it is not allowed there."""
        kind, text = token
        name = plain(text)
        if kind == "word" and self._is_keyword(name, role):
            return self._finish_keyword(name)
        if kind == "word" and not name.isascii():
            return False
        if role in (DEFINITION, ALIAS):
            return self._define(name, role)
        if role == TABLE:
            return following != "(" and self._finish_table(token)
        if role == FREE:
            return True
        if kind == "quoted":
            return following != "(" and self._quoted_may_stand(text, role)
        return self._finish_operand(name, role, following)

    def _is_keyword(self, name: str, role: str) -> bool:
        """Whether a word is a keyword here, and not the name of something."""
        if name not in _LOWER_KEYWORDS or role in (TABLE, COLUMN):
            return False
        if role == DEFINITION:  # after AS and the like, SQLite takes every word that it allows for a name
            return name == "recursive" and self.previous[1].lower() == "with"
        if role == ALIAS:
            return not self._is_alias(name)
        return role != OPERAND or name not in self.database.names_after(self.syntax_before)

    def _is_alias(self, keyword: str) -> bool:
        """Whether SQLite takes a keyword after an operand or a table for its alias: a comma may follow."""
        state = self.levels[-1].state
        if state not in (LIST, FROM) or keyword in _AFTER_OPERANDS:
            return False
        if state == FROM and (self.levels[-1].in_on or keyword.startswith(_AFTER_A_TABLE)):
            return False
        return self.database.continues(f"{self.syntax_before} {keyword.upper()} , a")

    def _finish_table(self, token: Token) -> bool:
        kind, text = token
        name = plain(text)
        self.sources |= {name}
        if kind == "quoted":
            return name in (self.database.tables | self.ctes) and self._exact(text)
        return name in self._words_of(TABLE).names

    def _finish_operand(self, name: str, role: str, following: str) -> bool:
        """Read a word in an expression: a column, a table before a point, or a function before a bracket."""
        if following == "(" and role == OPERAND:
            return name in self.database.functions
        if following == "." and role == OPERAND:
            return not self._is_sure() or name in self._qualifiers()
        if self._is_name(name, role):
            return True
        self.must_call = role == OPERAND and name in self.database.functions and following[:1].isspace()
        return self.must_call

    def _is_name(self, name: str, role: str) -> bool:
        """Whether a word that has ended may be a column there."""
        if not self._is_sure():
            return self._known_column(name)
        if role == COLUMN:
            return name in self._columns_of_qualifier()
        return name in self._operands()

    def _quoted_may_stand(self, text: str, role: str) -> bool:
        if text[0] == '"' and role == OPERAND and not self.database.is_standard:
            return True
        return self._exact(text)

    def _exact(self, text: str) -> bool:
        """Whether a quoted name is spelled as the dialect requires."""
        if not self.database.is_standard:
            return True
        names = (*self.database.spelled_columns, *self.database.spelled_tables)
        return text in [strict_spelling(name) for name in names] or plain(text) in self.aliases | self.sources

    def _known_column(self, name: str) -> bool:
        """Whether a column may have this name, as far as the text says."""
        if self.any_columns and name.isascii():
            return len(name) <= LONGEST_NAME
        return name in self.database.words_of_columns or name in self.aliases or name == "rowid"

    def _define(self, name: str, role: str) -> bool:
        level = self.levels[-1]
        if role == ALIAS and level.state not in (LIST, FROM):
            return False
        if level.state == WITH:
            level.name = name
            self.ctes |= {name}
            self.sources |= {name}
        elif level.state == FROM:
            self.sources |= {name}
        else:
            self.aliases |= {name}
        return role != ALIAS or not name.startswith(_AFTER_A_TABLE) or level.state == LIST

    def _finish_keyword(self, word: str) -> bool:
        """Note what a keyword means for the innermost level; False if it is not allowed there."""
        level = self.levels[-1]
        if word not in self._first_words(level):
            return False
        at = len(self.read)
        if word == "select":
            if level.state in ("", WITH):
                level.begin_at = at
            level.state = LIST
            level.clause_at = 0
        elif word == "with" and not level.state:
            level.state = WITH
        elif word == "from" and level.state == LIST and self.previous[1].lower() != "distinct":
            level.state = FROM
            level.from_at = at
            level.in_on = False
        elif word in ("join", "on"):
            level.in_on = word == "on"
            level.clause_at = at + len(word)
        elif word in _AFTER_TABLES and level.state:
            return self._begin_clause(level, word)
        elif word in ("by", "offset") and level.state:
            level.clause_at = at + len(word)
        else:
            level.open_words = _opened(level.open_words, word)
        return True

    def _first_words(self, level: Level) -> frozenset[str]:
        """The keywords that are allowed here as far as the grammar does not know it."""
        if not self.previous[1]:
            return _BEGINNINGS
        if level.kind == "source" and not level.state:
            return _BEGINNINGS | {"values"}
        if level.state == WITH and self.previous[1] == ")" and self.closed_level == "body":
            return frozenset(["select"])
        return _LOWER_KEYWORDS

    def _begin_clause(self, level: Level, word: str) -> bool:
        """Begin the clause ``word`` after the tables; False if it is not allowed there."""
        if (word in _COMPOUND and level.is_ordered) or not self._end_tables(level):
            return False
        level.is_ordered = level.is_ordered or word in ("order", "limit")
        level.clause_at = len(self.read) + len(word) if word in ("where", "having", "limit") else 0
        return True

    # What are allowed here

    def _words_here(self) -> Words:
        """The words that are allowed in the place of the pending token."""
        if not self._is_separate(("word", "a")) or self.previous[1] == ";":
            return NO_WORDS
        if self.must_call:
            return NO_WORDS
        role = self._role()
        words = self._words_of(role) if self._follows("a") and not self._is_join() else NO_WORDS
        return _with_keywords(words, self._keywords_here(role))

    def _keywords_here(self, role: str) -> frozenset[str]:
        """The keywords that are allowed in the place of the pending token, which has this role."""
        if role in (TABLE, COLUMN):
            return frozenset()
        level = self.levels[-1]
        if self._is_join():
            return self.database.joins_after(self.syntax)
        keywords = self.database.keywords_after(self.syntax) & self._first_words(level)
        if role == OPERAND:
            keywords = keywords - self.database.names_after(self.syntax)
        if level.is_ordered:
            keywords = keywords - _COMPOUND
        if level.state in (LIST, FROM) and not keywords.isdisjoint(_AFTER_TABLES) and not self._may_end_tables():
            keywords = keywords - _AFTER_TABLES
        return keywords

    def _is_join(self) -> bool:
        """Whether the previous word begins a join, such as LEFT."""
        level = self.levels[-1]
        return level.state == FROM and not level.in_on and self.previous[1].upper() in JOINS

    def _may_end_tables(self) -> bool:
        """Whether the list has the columns of its tables, so that a clause may follow them."""
        query = self.copy()
        return query._end_tables(query.levels[-1])

    def _words_of(self, role: str) -> Words:
        level = self.levels[-1]
        if role == TABLE:
            return Words(self.database.words_of_tables | self.ctes)
        if role == DEFINITION:
            return ANY_WORD
        if role == ALIAS:
            if level.state == FROM:
                return ANY_ALIAS
            return ANY_WORD if level.state == LIST else NO_WORDS
        if role == FREE:
            return _free_words(self.previous[1].lower())
        if role == COLUMN:
            return self._column_words()
        if not self._is_sure():
            return ANY_WORD if not self.database.is_standard else Words(self.database.words_of_columns, is_any=True)
        return _operand_words(self._operands(), self._qualifiers(), self.database.functions)

    def _column_words(self) -> Words:
        if self._is_sure() and self.previous[1] == ".":
            return Words(self._columns_of_qualifier())
        if self.any_columns:
            return ANY_WORD
        return Words(self.database.words_of_columns | self.aliases)

    def _is_sure(self) -> bool:
        """Whether the tables of every query around this place are known, so that SQLite can check names."""
        return any(level.state for level in self.levels) and all(level.state != LIST for level in self.levels)

    def _operands(self) -> frozenset[str]:
        """The columns that an expression may have here."""
        return _operands(self.database, self._scope(), self.database.words_of_columns | self.aliases | {"rowid"})

    def _qualifiers(self) -> frozenset[str]:
        """The tables whose columns an expression may have here."""
        columns = self.database.columns | self.aliases
        return _qualifiers(self.database, self._scope(), self.sources, columns)

    def _columns_of_qualifier(self) -> frozenset[str]:
        """The columns of the table before the point."""
        before, closing = self._scope()
        names = self.database.words_of_columns | self.aliases | {"rowid"}
        return _operands(self.database, (f"{before}{self.before_previous[1]}.", closing), names)

    # What SQLite compiles

    def _with_known_lists(self, end: int) -> str:
        """The text up to ``end``, with the lists that wait for their tables replaced."""
        parts = []
        at = 0
        for level in self.levels:
            if level.state == FROM:
                parts += [self.read[at : level.begin_at], "SELECT 1 "]
                at = level.from_at
        return "".join([*parts, self.read[at:end]])

    def _scope(self) -> tuple[str, str]:
        """A text after which SQLite finds the names that an expression may have here, and what closes it.

        It is the same for all expressions of a clause.
        """
        depth = max(depth for depth, level in enumerate(self.levels) if level.state)
        clause_at = self.levels[depth].clause_at
        if not clause_at:
            return self._with_known_lists(len(self.read)), self._closing(len(self.levels))
        return self._with_known_lists(clause_at) + " ", self._closing(depth + 1, skip_words=True)

    def _closing(self, depth: int, skip_words: bool = False) -> str:
        """What closes the first ``depth`` levels, and the open words in them; with ``skip_words`` not in the last."""
        closing = []
        for at in range(depth - 1, -1, -1):
            level = self.levels[at]
            if not (skip_words and at == depth - 1):
                closing += [_CLOSING[word] for word in reversed(level.open_words)]
            if level.kind == "cast" and self.previous[1].lower() != "as":
                closing.append(" AS INT")
            if at:
                closing.append(")")
            if level.kind == "body":
                closing.append(f" SELECT 1 FROM {strict(level.name)}")
        return "".join(closing)

    def _compiles(self) -> bool:
        """Whether SQLite has no error that nothing can mend."""
        if not self._is_sure() or self.must_call:
            return True
        error = self.database.error_in(self._with_known_lists(len(self.read)) + self._closing(len(self.levels)))
        if not error:
            return True
        in_call = any(level.kind in ("call", "cast") for level in self.levels)
        if self._is_qualifier(error):
            return True
        return not FINAL_ERRORS.search(error) and (in_call or not CALL_ERRORS.search(error))

    def _is_qualifier(self, error: str) -> bool:
        """Whether an error is that of the last word, after which a point or a bracket may follow."""
        kind, text = self.previous
        if kind not in ("word", "quoted") or self.is_spaced:
            return False
        return error.endswith((f": {text}", f": {plain(text)}"))


def _as_syntax(token: Token) -> str:
    """A token as the grammar's cache needs it: every name is ``a``, every number ``1``."""
    kind, text = token
    if kind == "word":
        return text.upper() if text.upper() in KEYWORDS else "a"
    if kind == "number":
        return "1"
    if kind == "string":
        return "'a'"
    if kind == "quoted":
        return '"a"' if text[0] == '"' else "a"
    return text


def strict_spelling(name: str) -> str:
    """A name in double quotation marks."""
    return name if name.startswith('"') else f'"{name}"'


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


@lru_cache(maxsize=4096)
def _operands(database: EmptyDatabase, compiled: tuple[str, str], names: frozenset[str]) -> frozenset[str]:
    """The names that SQLite finds in one place."""
    before, closing = compiled
    found = []
    for name in names:
        if not NAME_ERRORS.search(database.error_in(f"{before}{strict(name)}{closing}")):
            found.append(name)
    return frozenset(found)


@lru_cache(maxsize=4096)
def _qualifiers(
    database: EmptyDatabase, compiled: tuple[str, str], sources: frozenset[str], columns: frozenset[str]
) -> frozenset[str]:
    """The names of tables, among ``sources``, that SQLite finds in one place."""
    before, closing = compiled
    found = []
    for source in sources:
        for column in ("rowid", *sorted(columns)):
            if not NAME_ERRORS.search(database.error_in(f"{before}{strict(source)}.{strict(column)}{closing}")):
                found.append(source)
                break
    return frozenset(found)


@lru_cache(maxsize=4096)
def _operand_words(operands: frozenset[str], qualifiers: frozenset[str], functions: frozenset[str]) -> Words:
    return Words(operands | qualifiers | functions)


@lru_cache(maxsize=4096)
def _with_keywords(words: Words, keywords: frozenset[str]) -> Words:
    return Words(words.names, words.keywords | keywords, words.is_any, words.excluded)


def _free_words(previous: str) -> Words:
    if previous == "collate":
        return Words(frozenset(_COLLATIONS))
    if previous == "as":
        return Words(frozenset(_TYPES))
    return ANY_WORD if previous == "over" else NO_WORDS


def _opened(open_words: tuple[str, ...], word: str) -> tuple[str, ...]:
    """The words that wait for another one, after ``word``."""
    last = open_words[-1] if open_words else ""
    if word in ("case", "between"):
        return (*open_words, word)
    if word in ("when", "then", "else") and last in ("case", "when", "then", "else"):
        return (*open_words[:-1], word)
    if (word == "end" and last in ("then", "else")) or (word == "and" and last == "between"):
        return open_words[:-1]
    return open_words


_CLOSING = {
    "case": " WHEN 1 THEN 1 END",
    "when": " THEN 1 END",
    "then": " END",
    "else": " END",
    "between": " AND 1",
}
_LOWER_KEYWORDS = frozenset(word.lower() for word in KEYWORDS)
ANY_WORD = Words(is_any=True)
_AFTER_OPERANDS = frozenset(["end", "isnull", "notnull"])
"""Keywords that end an operand after another one, and are followed by a comma like an alias."""
ANY_ALIAS = Words(is_any=True, excluded=_AFTER_A_TABLE)
