"""Intervals, paired tests and measures."""
