"""One guided decoding step, which every loop calls."""
