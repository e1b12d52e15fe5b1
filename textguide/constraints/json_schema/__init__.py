"""JSON documents that satisfy a schema."""

from .constraint import Call, JSONSchema

__all__ = ["Call", "JSONSchema"]
