"""Summaries of twenty texts that keep to the text (context-aware decoding)."""

import warnings

import textguide
from textguide.guidance import ContextAware
from textguide.support.errors import EmptyTextWarning

model, tokenizer = textguide.load("smollm2-small", device="cpu")
TOWNS = ("Perth", "Lima", "Oslo", "Cairo")
documents = [f"Report {n}: the river in {TOWNS[n % 4]} rose by {n + 2} metres on Monday." for n in range(20)]
chats = [[{"role": "user", "content": f"Summarise in one line. {document}"}] for document in documents]
out = textguide.generate(model, tokenizer, chats, ContextAware(1.5, context=documents), batch_size=8, max_new_tokens=6)
assert len(out.texts) == 20
assert all(out.texts)
assert out.effect.mean_kl > 0
for n in (0, 7, 19):
    alone = textguide.generate(model, tokenizer, [chats[n]], ContextAware(1.5, context=documents[n]), max_new_tokens=6)
    assert alone.texts == [out.texts[n]]
print(out.texts[0], out.effect)

# A passage that is not in its prompt cannot be left out of the other branch.
try:
    textguide.generate(model, tokenizer, chats[:1], ContextAware(1.5, context="Something else."))
except ValueError as error:
    print(error)
else:
    raise AssertionError("a passage that is not in the prompt was accepted")

# A stop text that comes first leaves nothing, and the warning explains why.
prompts = [f"{document}\nSummary:" for document in documents[:3]]
first = textguide.generate(model, tokenizer, prompts[:1], max_new_tokens=1).texts[0]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    empty = textguide.generate(model, tokenizer, prompts[:1], stop=first, include_stop=False, max_new_tokens=6)
assert empty.texts == [""]
(warning,) = caught
assert warning.category is EmptyTextWarning
assert "pass the prompt as a chat" in str(warning.message)
