"""Guided decoding inside vLLM."""
