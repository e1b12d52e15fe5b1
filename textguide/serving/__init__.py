"""What a server of textguide may be asked: the schema of requests, their limits, who may send them, and in which order
they run. The playground and the server of masked diffusion models are built on this."""
