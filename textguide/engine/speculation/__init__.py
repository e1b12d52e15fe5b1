"""Speculation: a pass reads guessed tokens too, and those that were right cost no pass of their own."""

from .value import Speculation, SpeculationReport, as_speculation

__all__ = ["Speculation", "SpeculationReport", "as_speculation"]
