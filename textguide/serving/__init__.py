"""What a server of textguide may be asked: the schema of requests, their limits, and who takes turns."""
