"""A labelled data set as JSONL: one prompt per class, contrasted with the others."""

import json
from collections import Counter
from pathlib import Path

import textguide
from textguide.guidance import CorrSynth

model, tokenizer = textguide.load("smollm2-small", device="cpu")
prompts = {"positive": "A review by somebody who loved it:", "negative": "A review by somebody who hated it:"}
out = textguide.generate(
    model,
    tokenizer,
    list(prompts.values()),
    CorrSynth(1.5, group=2),
    num_return_sequences=10,
    do_sample=True,
    seed=0,
    max_new_tokens=12,
)
rows = [{"text": text, "label": label} for label, texts in zip(prompts, out.grouped) for text in texts]
Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
read = [json.loads(line) for line in Path("data.jsonl").read_text().splitlines()]
assert Counter(row["label"] for row in read) == {"positive": 10, "negative": 10}
# The label is that of the prompt whose tokens the row starts with.
longest = max(map(len, out.new_tokens))
for n, row in enumerate(rows):
    begun = tokenizer.decode(out.sequences[n, : out.sequences.shape[1] - longest], skip_special_tokens=True)
    assert begun.endswith(prompts[row["label"]])
print(read[0], out.effect)
