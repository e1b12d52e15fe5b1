"""Free text with forms that triggers start: tool calls, thoughts, code fences."""

from .constraint import Piece, Tag, Tags
from .tools import tool_calls

__all__ = ["Piece", "Tag", "Tags", "tool_calls"]
