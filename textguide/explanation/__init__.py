"""What guidance did to each token, as values, as text and as a page."""

from .explaining import Explanation, explain

__all__ = ["Explanation", "explain"]
