"""Files, errors and optional packages: what every room may use."""

__version__ = "0.1.0"
