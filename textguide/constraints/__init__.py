"""What may be generated: constraints over bytes, and the engines that check them token by token."""

from .after import After
from .base import Citation, Constraint, Session, Source, UnsatisfiableError
from .combine import AllOf, AnyOf, Not
from .grammars import Grammar
from .json_schema import Call, JSONSchema
from .patterns import Regex
from .predicate import Predicate
from .quotes import Corpus, Quote
from .smiles import SMILES
from .spec import from_dict, resolve
from .sql import SQL
from .tags import Tag, Tags, tool_calls
from .vocabulary import Vocabulary

__all__ = [
    "After",
    "AllOf",
    "AnyOf",
    "Call",
    "Citation",
    "Constraint",
    "Corpus",
    "Grammar",
    "JSONSchema",
    "Not",
    "Predicate",
    "Quote",
    "Regex",
    "SMILES",
    "SQL",
    "Session",
    "Source",
    "Tag",
    "Tags",
    "UnsatisfiableError",
    "Vocabulary",
    "from_dict",
    "resolve",
    "tool_calls",
]
