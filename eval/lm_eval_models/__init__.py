"""Guided models for lm-eval."""
