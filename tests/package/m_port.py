"""A script with ``guidance_scale`` of transformers, moved to textguide: the same tokens."""

import torch

import textguide
from textguide import CFG

model, tokenizer = textguide.load("smollm2-small", device="cpu")
tokenizer.padding_side = "left"
inputs = tokenizer(["The dragon flew over Paris,", "The king"], return_tensors="pt", padding=True)
one = tokenizer("The dragon flew over Paris,", return_tensors="pt")
negative = tokenizer("A boring text about", return_tensors="pt").input_ids
options = {"max_new_tokens": 10, "pad_token_id": tokenizer.pad_token_id}
for given, drawn, prompt in (
    (inputs, False, None), (one, False, None), (one, True, None), (one, False, negative),
):  # fmt: skip
    torch.manual_seed(0)
    theirs = model.generate(
        **given, **options, do_sample=drawn, guidance_scale=1.5,
        **({} if prompt is None else {"negative_prompt_ids": prompt}),
    )  # fmt: skip
    torch.manual_seed(0)
    guidance = CFG(1.5) if prompt is None else CFG(1.5, negative_prompt=prompt[0].tolist())
    ours = model.generate(**given, **options, do_sample=drawn, custom_generate=textguide.guided_decoding(guidance))
    assert ours.tolist() == theirs.tolist(), (drawn, prompt)
