"""A masked diffusion model over HTTP."""
