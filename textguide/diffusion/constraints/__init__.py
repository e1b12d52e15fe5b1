"""Forms on a canvas: constraints on the whole text, kept at every step of a sampler.

Example::

    diffusion.generate(model, tokenizer, prompts, constraint=Regex(r"\\d{4}-\\d{2}-\\d{2}"), gen_length=10)
"""
