"""Speculation: a pass also reads guessed tokens, and right guesses do not need a pass of their own."""

from .value import Speculation, SpeculationReport, as_speculation

__all__ = ["Speculation", "SpeculationReport", "as_speculation"]
