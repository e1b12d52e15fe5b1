"""A chat with a persona, streamed, with its history, and away from the usual assistant."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import textguide
from textguide import CFG

# The bundled small model hardly reads what is far away; one with large random weights reads everything.
_, tokenizer = textguide.load("smollm2-small", device="cpu")
torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)).eval()
away = CFG(1.5, negative_system="You are a helpful assistant.")
history = []
for question in ("Who are you?", "What do you want?"):
    history.append({"role": "user", "content": question})
    options = {"system": "You are a pirate.", "max_new_tokens": 6}
    whole = textguide.generate(model, tokenizer, [history], away, **options)
    pieces = list(textguide.stream(model, tokenizer, [history], away, **options))
    assert "".join(pieces) == whole.texts[0]
    assert whole.effect.mean_kl > 0
    history.append({"role": "assistant", "content": whole.texts[0]})
print(history)

# A text with a system prompt is a chat in every branch.
text = textguide.generate(model, tokenizer, "Who are you?", away, **options)
chat = textguide.generate(model, tokenizer, [history[:1]], away, **options)
assert text.texts == chat.texts
