"""How many JSON documents end, under each bound of whitespace.

Items of the task ``json`` are decoded by a mask, under all whitespace that JSON allows and under the bounds. A text
that has not ended at the limit is counted as looping where its last 20 characters are whitespace. ``cost`` is the
log-probability that the bound took along the text::

    python scripts/bench/json_whitespace.py --items 20 --new 128
"""

from __future__ import annotations

import argparse
import warnings

import torch

import textguide
from textguide import AWRS
from textguide.constraints import JSONSchema, Vocabulary
from textguide.tasks.constrained import JSONDocuments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--whitespace", nargs="+", default=["any", "flexible", "none"])
    parser.add_argument("--data")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model, tokenizer = textguide.load(arguments.model)
    vocabulary = Vocabulary.of(tokenizer, model.config.vocab_size)
    items = JSONDocuments(arguments.data).items()
    items = items[:: max(1, len(items) // arguments.items)][: arguments.items]
    print("| whitespace | ended | looping in whitespace | mean cost, nats |\n|---|---|---|---|")
    for whitespace in arguments.whitespace:
        ended, looping, costs = 0, 0, list[float]()
        for number, item in enumerate(items):
            constraint = JSONSchema(item.answer, whitespace)
            out = textguide.generate(
                model, tokenizer, item.text, AWRS(constraint, sampler="mask"), max_new_tokens=arguments.new, seed=number
            )
            text = out.texts[0]
            ended += bool(out.finished[0])
            looping += not out.finished[0] and not text[-20:].strip()
            costs.append(cost(model, tokenizer, vocabulary, constraint, item.text, text))
        mean = sum(costs) / len(costs)
        print(f"| `{whitespace}` | {ended} of {len(items)} | {looping} | {mean:.2f} |", flush=True)


@torch.no_grad()
def cost(model, tokenizer, vocabulary, constraint, prompt: str, text: str) -> float:  # type: ignore[no-untyped-def]
    """Of the text as the tokenizer writes it."""
    before = tokenizer(prompt, return_tensors="pt")["input_ids"]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    ids = torch.cat([before, torch.tensor([tokens], dtype=torch.long)], 1)
    logits = model(ids).logits[0, before.shape[1] - 1 : -1].float()
    return float(constraint.whitespace_cost(vocabulary, tokens, logits.log_softmax(-1)).sum())


if __name__ == "__main__":
    main()
