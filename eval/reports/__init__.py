"""Results as tables, plots and comparisons."""
