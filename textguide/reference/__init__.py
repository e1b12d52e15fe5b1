"""The oracles: every method again as the plainest loop that can be right."""
