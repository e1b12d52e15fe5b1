"""Intervals, paired tests and values of metrics."""
