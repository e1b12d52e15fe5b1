"""Constraints on canvases: the whole text satisfies a constraint, which every step of a sampler keeps possible.

Example::

    diffusion.generate(model, tokenizer, prompts, constraint=Regex(r"\\d{4}-\\d{2}-\\d{2}"), max_new_tokens=10)
"""
