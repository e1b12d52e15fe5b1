"""Results as reports, pictures and comparisons."""
