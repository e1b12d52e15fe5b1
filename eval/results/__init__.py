"""What a run found, and its folder."""
