"""Multiple choice under guidance: the option with the highest score, with and without the prior of the options."""

import torch

import textguide
from textguide import CFG
from textguide.tasks.selection import matched_prior, reweigh

model, tokenizer = textguide.load("smollm2-small", device="cpu")
questions = ["The capital of France is", "The opposite of hot is"]
options = [" Paris", " cold", " the"]
contexts = [question for question in questions for _ in options]
scores = textguide.score(model, tokenizer, contexts, options * len(questions), CFG(), scales=[1, 1.5])
table = scores.log_likelihood.view(2, len(questions), len(options))  # settings, questions, options
best = table.argmax(-1)
assert best.shape == (2, 2)
alone = textguide.score(model, tokenizer, questions[:1], options[:1], CFG(1.5))
torch.testing.assert_close(alone.log_likelihood[0, 0], table[1, 0, 0])
fair = reweigh(table[1], matched_prior(table[1]))
assert fair.shape == table[1].shape
print([[options[n] for n in row] for row in best.tolist()], fair.argmax(-1))
