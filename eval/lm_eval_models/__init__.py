"""The models that lm-eval judges."""
