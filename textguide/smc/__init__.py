"""Sequential Monte Carlo over texts: draws under constraints with their weights, particles, resampling."""
