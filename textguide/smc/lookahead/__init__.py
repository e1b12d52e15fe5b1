"""What is foreseen of texts under a constraint: how likely it is, from here, that they still become members in time."""

from .base import Ahead, Lookahead
from .naming import lookahead_of

__all__ = ["Ahead", "Lookahead", "lookahead_of"]
