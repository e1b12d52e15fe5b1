"""Measuring captions."""
