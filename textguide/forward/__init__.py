"""How a model is run: knows transformers, knows no guidance."""
