"""JSON documents that satisfy a schema."""

from .calls import Call
from .constraint import JSONSchema

__all__ = ["Call", "JSONSchema"]
