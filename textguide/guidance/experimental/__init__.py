"""Methods whose paper leaves open, or says of other models, what is done here: each docstring says what."""
