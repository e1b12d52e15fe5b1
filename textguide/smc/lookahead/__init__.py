"""Lookahead under a constraint: estimates how likely a text is to become a member within the limit of tokens."""

from .base import Ahead, Lookahead
from .naming import lookahead_of

__all__ = ["Ahead", "Lookahead", "lookahead_of"]
