"""Files, errors and optional packages: what every room may use."""
