"""transformers' pipeline with guidance: a batch of texts, and a chat."""

from transformers import pipeline

import textguide
from textguide import CFG

model, tokenizer = textguide.load("smollm2-small", device="cpu")
write = pipeline("text-generation", model=model, tokenizer=tokenizer)
options = {"max_new_tokens": 6, "do_sample": False, "return_full_text": False}
guided = textguide.guided_decoding(CFG(1.5))
prompts = ["The dragon flew over", "The king"]
answers = write(prompts, **options, batch_size=2, custom_generate=guided)
texts = [answer[0]["generated_text"] for answer in answers]
assert texts == textguide.generate(model, tokenizer, prompts, CFG(1.5), max_new_tokens=6).texts
assert guided.effect.mean_kl > 0
chat = [{"role": "user", "content": "Describe Paris."}]
answer = write(chat, **options, custom_generate=guided)[0]["generated_text"]
assert answer == textguide.generate(model, tokenizer, [chat], CFG(1.5), max_new_tokens=6).texts[0]
print(texts, answer)
