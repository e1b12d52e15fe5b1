"""What guidance did to each token, as values, as a table and as a page."""

from .explaining import Explanation, explain
from .values import ExplainedStep, ExplainedText, TokenMove

__all__ = ["ExplainedStep", "ExplainedText", "Explanation", "TokenMove", "explain"]
