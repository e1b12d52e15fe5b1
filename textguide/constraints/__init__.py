"""What may be generated: constraints over bytes, and the engines that check them token by token."""

from .base import Constraint, Session
from .vocabulary import Vocabulary

__all__ = ["Constraint", "Session", "Vocabulary"]
