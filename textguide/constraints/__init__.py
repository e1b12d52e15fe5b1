"""What may be generated: constraints over bytes, and the engines that check them token by token."""

from .after import After
from .base import Constraint, Session, UnsatisfiableError
from .combine import AllOf, AnyOf, Not
from .grammars import Grammar
from .json_schema import Call, JSONSchema
from .patterns import Regex
from .predicate import Predicate
from .smiles import SMILES
from .spec import from_dict, resolve
from .sql import SQL
from .vocabulary import Vocabulary

__all__ = [
    "After",
    "AllOf",
    "AnyOf",
    "Call",
    "Constraint",
    "Grammar",
    "JSONSchema",
    "Not",
    "Predicate",
    "Regex",
    "SMILES",
    "SQL",
    "Session",
    "UnsatisfiableError",
    "Vocabulary",
    "from_dict",
    "resolve",
]
