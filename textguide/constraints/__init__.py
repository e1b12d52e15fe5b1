"""What may be generated: constraints over bytes, and the engines that check them token by token."""

from .base import Constraint, Session
from .patterns import Regex
from .predicate import Predicate
from .vocabulary import Vocabulary

__all__ = ["Constraint", "Predicate", "Regex", "Session", "Vocabulary"]
