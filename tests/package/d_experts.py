"""A steering vector from one's own pairs, and an expert from one's own folder."""

from pathlib import Path

import textguide
from textguide import cli
from textguide.guidance import DExperts, Steering

PAIRS = (("What a joy", "What a bore"), ("I love it", "I hate it"), ("It is wonderful", "It is awful"))
Path("pairs.tsv").write_text("".join(f"{one}\t{other}\n" for one, other in PAIRS))
small = ["--model", "smollm2-small"]
assert cli.main(["steering", "train", "pairs.tsv", "--out", "V", *small]) == 0
assert cli.main(["generate", "I went to", *small, "--guidance", "steering:vector=V,strength=2"]) == 0

model, tokenizer = textguide.load("smollm2-small", device="cpu")
plain = textguide.generate(model, tokenizer, "I went to", max_new_tokens=8)
steered = textguide.generate(model, tokenizer, "I went to", Steering("V", strength=8), max_new_tokens=8)
assert steered.texts != plain.texts
assert steered.log_probs[0, 0] != plain.log_probs[0, 0]

expert, _ = textguide.load("smollm2-small-positive", device="cpu")
expert.save_pretrained("expert")
tokenizer.save_pretrained("expert")
models = {"expert": textguide.load("expert", device="cpu")[0]}
guided = textguide.generate(
    model, tokenizer, "I went to", DExperts(2.0, anti_expert=None), models=models, max_new_tokens=8
)
bundled = textguide.generate(
    model, tokenizer, "I went to", DExperts(2.0, anti_expert=None), models={"expert": expert}, max_new_tokens=8
)
assert guided.texts == bundled.texts
assert guided.effect.mean_kl > 0
print(guided.texts, guided.effect)
