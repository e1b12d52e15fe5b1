"""A grammar of SELECT queries over the tables and columns of one database."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from textguide.constraints.sql.lexing import STANDARD, spelled

_KEYWORDS = (
    "SELECT", "DISTINCT", "FROM", "WHERE", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "JOIN", "LEFT JOIN", "ON", "AS",
    "AND", "OR", "ASC", "DESC", "NOT", "IN", "IS", "NULL", "LIKE", "BETWEEN", "INTERSECT", "EXCEPT", "UNION", "COUNT",
    "SUM", "AVG", "MIN", "MAX",
)  # fmt: skip
_RULES = r"""
start: selection ordering? | selection " " (INTERSECT | EXCEPT | UNION) " " selection ordering?
selection: SELECT " " (DISTINCT " ")? items rest
nested: "(" SELECT " " (DISTINCT " ")? value rest ordering? ")"
rest: " " FROM " " source (" " WHERE " " conditions)? grouping?
items: item ("," " "? item)*
item: "*" | value
value: column | aggregate
aggregate: COUNT " "? "(" "*" ")" | (COUNT | SUM | AVG | MIN | MAX) " "? "(" (DISTINCT " ")? column ")"
source: place (" " (JOIN | LEFT_JOIN) " " place " " ON " " column " "? "=" " "? column)*
place: table (" " AS " " ALIAS)?
conditions: condition (" " (AND | OR) " " condition)*
condition: column " "? COMPARE " "? operand
    | column (" " NOT)? " " LIKE " " STRING
    | column " " BETWEEN " " literal " " AND " " literal
    | column (" " NOT)? " " IN " " nested
    | column " " IS (" " NOT)? " " NULL
operand: literal | column | nested
literal: NUMBER | STRING
grouping: " " GROUP_BY " " column ("," " "? column)* (" " HAVING " " value " "? COMPARE " "? operand)?
ordering: " " ORDER_BY " " value ("," " "? value)* (" " (ASC | DESC))? limit? | limit
limit: " " LIMIT " " COUNTING
column: (table "." | ALIAS ".")? name
COMPARE: "=" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
NUMBER: /-?[0-9]{1,9}(\.[0-9]{1,4})?/
COUNTING: /[1-9][0-9]{0,3}/
ALIAS: /[Tt][1-9]/
"""
_STRINGS = {"sqlite": r"""/'[^'\n]{0,60}'/ | /"[^"\n]{0,60}"/""", STANDARD: r"/'[^'\n]{0,60}'/"}


def sql_grammar(tables: Mapping[str, Sequence[str]], dialect: str = "sqlite") -> str:
    """The grammar, in Lark's notation: keywords, tables and columns in capital or small letters, single spaces.

    Args:
        tables: the columns of each table.
        dialect: ``sqlite``; or ``standard``, which writes strings only in single quotation marks, and names with
            capital letters in double ones, as PostgreSQL requires.

    Raises:
        ValueError: there are no tables or no columns.
    """
    columns = list(dict.fromkeys(column for names in tables.values() for column in names))
    if not columns:
        raise ValueError(f"database={dict(tables)!r} must have a table with a column")
    keywords = "\n".join(f"{word.replace(' ', '_')}: {_either_case(word)}" for word in _KEYWORDS)
    names = f"table: {_names(tables, dialect)}\nname: {_names(columns, dialect)}\nSTRING: {_STRINGS[dialect]}"
    return f"{_RULES}{names}\n{keywords}\n"


def _names(names: Iterable[str], dialect: str) -> str:
    """The alternatives of a rule: quoted names as they are, the others in either case."""
    spellings = set()
    for name in names:
        spelling = spelled(name, dialect)
        spellings.add(spelling if spelling.startswith('"') else spelling.lower())
    alternatives = []
    for spelling in sorted(spellings):
        is_quoted = spelling.startswith('"')
        alternatives.append(json.dumps(spelling, ensure_ascii=False) if is_quoted else _either_case(spelling))
    return " | ".join(alternatives)


def _either_case(name: str) -> str:
    return f"/(?i:{name})/"
