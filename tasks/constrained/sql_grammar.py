"""A grammar of SELECT queries over the tables and columns of one database."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_KEYWORDS = (
    "SELECT", "DISTINCT", "FROM", "WHERE", "GROUP BY", "HAVING", "ORDER BY", "LIMIT", "JOIN", "ON", "AS", "AND", "OR",
    "ASC", "DESC", "NOT", "IN", "LIKE", "BETWEEN", "INTERSECT", "EXCEPT", "UNION", "COUNT", "SUM", "AVG", "MIN", "MAX",
)  # fmt: skip

_RULES = r"""
start: query (" " (INTERSECT | EXCEPT | UNION) " " query)?
query: SELECT " " (DISTINCT " ")? items " " FROM " " source (" " WHERE " " conditions)? grouping? ordering?
items: item ("," " "? item)*
item: "*" | value
value: column | aggregate
aggregate: (COUNT | SUM | AVG | MIN | MAX) " "? "(" ("*" | (DISTINCT " ")? column) ")"
source: place (" " JOIN " " place " " ON " " column " "? "=" " "? column)*
place: TABLE (" " AS " " ALIAS)?
conditions: condition (" " (AND | OR) " " condition)*
condition: value " "? COMPARE " "? operand
    | column (" " NOT)? " " LIKE " " STRING
    | column " " BETWEEN " " literal " " AND " " literal
    | column (" " NOT)? " " IN " " "(" query ")"
operand: literal | column | "(" query ")"
literal: NUMBER | STRING
grouping: " " GROUP_BY " " column ("," " "? column)* (" " HAVING " " value " "? COMPARE " "? operand)?
ordering: " " ORDER_BY " " value ("," " "? value)* (" " (ASC | DESC))? limit? | limit
limit: " " LIMIT " " COUNTING
column: (TABLE "." | ALIAS ".")? COLUMN
COMPARE: "=" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
NUMBER: /-?[0-9]{1,9}(\.[0-9]{1,4})?/
COUNTING: /[1-9][0-9]{0,3}/
STRING: /'[^'\n]{0,60}'/ | /"[^"\n]{0,60}"/
ALIAS: /[Tt][1-9]/
"""


def sql_grammar(tables: Mapping[str, Sequence[str]]) -> str:
    """The grammar, in Lark's notation: keywords, tables and columns in capital or small letters, single spaces.

    Args:
        tables: the columns of each table.

    Raises:
        ValueError: there is no table or no column, or a name is none that stands without quotation marks.
    """
    columns = list(dict.fromkeys(column.lower() for names in tables.values() for column in names))
    if not columns:
        raise ValueError(f"tables={tables!r} must hold a table with a column")
    keywords = "\n".join(f"{word.replace(' ', '_')}: {_either_case(word)}" for word in _KEYWORDS)
    return f"{_RULES}TABLE: {_names(tables)}\nCOLUMN: {_names(columns)}\n{keywords}\n"


def _names(names: Mapping[str, Sequence[str]] | Sequence[str]) -> str:
    for name in names:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise ValueError(f"tables holds the name {name!r}, which SQL asks to quote; rename it")
    return " | ".join(map(_either_case, names))


def _either_case(name: str) -> str:
    return f"/(?i:{name})/"
