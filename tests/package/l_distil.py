"""Guidance distilled into an adapter from one's own prompts, which PEFT loads without textguide."""

import peft
import torch

import textguide
from textguide import CFG

model, tokenizer = textguide.load("smollm2-small", device="cpu")
prompts = ["The dragon flew over", "The king of France", "A ship at sea", "On Monday the river"]
textguide.distill(model, tokenizer, CFG(1.5), "adapter", prompts=prompts, texts=8, tokens=16, steps=3, rank=2)
plain, _ = textguide.load("smollm2-small", device="cpu")
theirs = peft.PeftModel.from_pretrained(plain, "adapter").eval()
ours, _ = textguide.load("smollm2-small", device="cpu", adapter="adapter")
ids = torch.tensor([tokenizer(prompts[0]).input_ids])
with torch.no_grad():
    adapted = theirs(ids).logits
    torch.testing.assert_close(ours(ids).logits, adapted, atol=1e-4, rtol=1e-4)
    assert not torch.equal(model(ids).logits, adapted)
out = textguide.generate(model, tokenizer, prompts[0], CFG(1.5, distilled="adapter"), max_new_tokens=6)
print(out.texts)
