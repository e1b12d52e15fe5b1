"""Free text with forms that triggers start: tool calls, thoughts, code fences."""

from .constraint import Piece, Tag, Tags

__all__ = ["Piece", "Tag", "Tags"]
