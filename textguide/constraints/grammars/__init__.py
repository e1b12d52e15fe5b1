"""Context-free grammars in Lark's notation."""

from .constraint import Grammar

__all__ = ["Grammar"]
