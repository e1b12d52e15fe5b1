"""A guidance method of one's own, used in every way: generate, text form, JSON, stream, score, explain, drop-in."""

from dataclasses import dataclass

import torch
from transformers import LogitsProcessorList

import textguide
from textguide import GuidanceLogitsProcessor
from textguide.guidance import About, Contrast, Guidance
from textguide.testing import check


@dataclass(frozen=True)
class HalfCFG(Contrast):
    """``lc + (γ − 1)/2 · (lc − lu)``: classifier-free guidance, half as strong."""

    name = "half-cfg-of-the-package-test"
    about = About("", "lc + (γ − 1)/2 (lc − lu)", "one row in the same pass", "γ = 1", "nothing; it is an example")

    def mix(self, logp, scale, step):
        cond, uncond = logp
        return cond + (scale - 1) / 2 * (cond - uncond)


check(HalfCFG(2.0))
model, tokenizer = textguide.load("smollm2-small", device="cpu")
prompt = "The dragon flew over"
out = textguide.generate(model, tokenizer, prompt, HalfCFG(2.0), max_new_tokens=6)
same = textguide.generate(model, tokenizer, prompt, "cfg:scale=1.5", max_new_tokens=6)
assert out.texts == same.texts
form = f"{HalfCFG.name}:scale=2"
assert textguide.generate(model, tokenizer, prompt, form, max_new_tokens=6).texts == out.texts
assert Guidance.from_json(HalfCFG(2.0).to_json()) == HalfCFG(2.0)
assert "".join(textguide.stream(model, tokenizer, prompt, form, max_new_tokens=6)) == out.texts[0]
scored = textguide.score(model, tokenizer, [prompt], [out.new_tokens[0]], HalfCFG(2.0))
torch.testing.assert_close(scored.log_likelihood[0], out.log_likelihood, atol=1e-3, rtol=1e-4)
assert "dragon" in textguide.explain(model, tokenizer, prompt, HalfCFG(2.0), max_new_tokens=3).to_html()
inputs = tokenizer(prompt, return_tensors="pt")
processors = LogitsProcessorList([GuidanceLogitsProcessor(model, HalfCFG(2.0))])
ids = model.generate(**inputs, do_sample=False, max_new_tokens=6, logits_processor=processors)
assert ids[0, inputs.input_ids.shape[1] :].tolist() == out.new_tokens[0]
