"""SELECT queries over the tables of one database."""

from .constraint import SQL

__all__ = ["SQL"]
