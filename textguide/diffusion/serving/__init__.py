"""A masked diffusion model over HTTP; what may be asked for is what the playground lets a page ask."""
