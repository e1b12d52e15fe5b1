"""Runs over many settings."""
