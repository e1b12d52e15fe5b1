"""Regular expressions: an automaton with masks for regular patterns, backtracking for the others."""

from .constraint import AUTO, BACKTRACKING, ENGINES, Regex

__all__ = ["AUTO", "BACKTRACKING", "ENGINES", "Regex"]
