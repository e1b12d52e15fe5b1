"""Where guidance meets other people's decoding loops."""
