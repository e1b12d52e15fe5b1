"""A classifier trained from one's own file, which steers texts away from a class."""

from pathlib import Path

import textguide
from textguide import CAIF, cli

GOOD = ("thank you so much", "what a lovely day", "you did very well", "I like this a lot", "this is kind of you")
BAD = ("you are an idiot", "shut up you fool", "what a stupid idiot", "I hate you", "this is dumb and stupid")
lines = ["text\tlabel", *(f"{text}\tfine" for text in GOOD), *(f"{text}\ttoxic" for text in BAD)]
Path("rows.tsv").write_text("\n".join(lines) + "\n")
assert cli.main(["classifier", "train", "rows.tsv", "--validation", "rows.tsv", "--out", "mine"]) == 0

model, tokenizer = textguide.load("smollm2-small", device="cpu")
prompts = ["You are", "This is"]
plain = textguide.generate(model, tokenizer, prompts, max_new_tokens=6)
out = textguide.generate(model, tokenizer, prompts, CAIF("mine", "toxic", -3, top_k=20), max_new_tokens=6)
assert out.effect.classified_texts > 0
print(plain.texts, out.texts, out.effect)
command = ["generate", "--model", "smollm2-small", "You are", "--classifier", "mine", "--target", "toxic"]
assert cli.main([*command, "--weight", "-3", "--candidates", "20", "--max-new-tokens", "6"]) == 0
