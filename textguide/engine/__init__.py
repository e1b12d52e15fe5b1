"""How guidance decodes: the loop, its passes and what they need."""
