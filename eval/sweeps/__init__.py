"""Runs over many settings: sweeps, their plans, tuning, and the comparison of all methods."""
