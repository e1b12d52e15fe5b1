"""Texts that appear verbatim in documents."""

from .constraint import Corpus, Quote, files_in

__all__ = ["Corpus", "Quote", "files_in"]
