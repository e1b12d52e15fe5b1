"""Make the bundled SmolLM2-135M a masked diffusion model of blocks, by an adapter (LoRA) of less than 10 MB.

A text is read as block diffusion models read it (arXiv 2503.09573): attention is causal between blocks of four tokens
and open inside of them. A token is predicted at the position before it, as the language model does (shifted targets,
arXiv 2410.17891), so that the prediction of a block's first token does not change. It learns from passages of LAMBADA
and from texts that it writes itself::

    pip install 'textguide[smollm2,adapters]'
    python scripts/train/adapted.py --data DATA --work FOLDER --minutes 40

``DATA`` holds ``lambada/lambada_test.jsonl`` (CC BY 4.0), whose last passages are held out for the perplexity bound in
the model card. An interrupted run continues; ``--minutes`` counts only training, over all runs.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import textguide
from textguide.diffusion.adapted import CARD, noisy_and_clean, of_blocks
from textguide.distillation import checkpoint, texts
from textguide.forward.low_rank import peft
from textguide.forward.steering_vectors import model_fingerprint
from textguide.support.files import write_json

MASK = "<empty_output>"
HELD_OUT = 400
PROMPT, TARGET = 32, 32
"""Tokens of a held-out passage: the prompt, and those after it, whose perplexity is bounded."""
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SAVE_EVERY = 60.0
"""Seconds between checkpoints."""
README = """# smollm2-adapted: SmolLM2-135M-Instruct as a masked diffusion model of blocks

An adapter (LoRA of rank {rank}) for the model `smollm2` of textguide (`{fingerprint}`), written by
`scripts/train/adapted.py` in {minutes:.0f} minutes of training on {threads} CPU core(s): {steps} steps of {batch} rows
of {length} tokens.

* `textguide.diffusion.load("smollm2-adapted")` puts it into the weights. Blocks of {block} tokens; the mask is the
  token `{mask}`, which texts do not hold.
* Texts: {passages} passages of LAMBADA (OpenAI's version, CC BY 4.0; the last {held} are held out), and {written} texts
  that the model wrote itself.
* Perplexity bound on held-out passages: {bound:.1f}, where the language model itself has {language:.1f}.
* It was trained for minutes. Text in front of a block is seen and text behind it is not, so that it fills masks from
  left to right, block by block.
* Licence: Apache-2.0, as the base model and the rest of the project.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="smollm2", help="the language model, by the name that textguide.load takes")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="texts and the checkpoint of a run that is under way")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--written", type=int, default=512, help="texts that the model writes itself")
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--items", type=int, default=100, help="held-out passages that are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("textguide/diffusion/models/smollm2-adapted"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    lines = (arguments.data / "lambada" / "lambada_test.jsonl").read_text(encoding="utf-8").splitlines()
    passages = [json.loads(line)["text"] for line in lines]
    model, tokenizer = textguide.load(arguments.base, dtype=torch.bfloat16)
    fingerprint = model_fingerprint(model)
    written = own_texts(model, tokenizer, arguments.written, arguments.work)
    rows = packed(tokenizer, [*passages[:-HELD_OUT], *written], arguments.length)
    held = [ids for text in passages[-HELD_OUT:] if len(ids := tokenizer(text).input_ids) >= PROMPT + TARGET]
    tests = torch.tensor([ids[: PROMPT + TARGET] for ids in held[: arguments.items]])
    language = own_perplexity(model, tests)
    of_blocks(model, tokenizer, arguments.block, MASK)
    config = peft("training").LoraConfig(
        r=arguments.rank, lora_alpha=2 * arguments.rank, target_modules=LAYERS, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    wrapped = peft("training").get_peft_model(model, config)
    first = bound_of(model, tests, arguments.block)
    print(f"{len(rows)} rows; the language model {language:.2f}, bound before training {first:.1f}", flush=True)

    curve = train(wrapped, rows, arguments)
    bound = bound_of(model, tests, arguments.block)
    print(f"bound {bound:.2f}", flush=True)
    facts = {
        "base": arguments.base, "model_fingerprint": fingerprint, "block_size": arguments.block, "mask_token": MASK,
        "rank": arguments.rank, "batch": arguments.batch, "length": arguments.length, "rate": arguments.rate,
        "passages": len(passages) - HELD_OUT, "written": len(written), "rows": len(rows), "steps": len(curve),
        "minutes": curve[-1][1] if curve else 0.0, "threads": arguments.threads,
    }  # fmt: skip
    write_adapter(wrapped, arguments.output, facts, bound, language)


def own_texts(model: Any, tokenizer: Any, count: int, work: Path) -> list[str]:
    """Texts that the model writes after openings of one word; stored in ``work``."""
    work.mkdir(parents=True, exist_ok=True)
    found, openings = [], texts.openings(tokenizer)
    for start in range(0, count, 64):
        file = work / f"texts-{start:05d}.json"
        if not file.is_file():
            prompts = [openings[n % len(openings)] for n in range(start, min(count, start + 64))]
            out = textguide.generate(
                model, tokenizer, prompts, max_new_tokens=95, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                seed=start,
            )  # fmt: skip
            whole = [[*p, *new] for p, new in zip(prompts, out.new_tokens, strict=True)]
            write_json(file, tokenizer.batch_decode(whole, skip_special_tokens=True))
        found += json.loads(file.read_text(encoding="utf-8"))
    return found[:count]


def packed(tokenizer: Any, parts: list[str], length: int) -> Tensor:
    """All texts in one stream, with an end token between two, cut into rows of ``length`` tokens."""
    order = torch.randperm(len(parts), generator=torch.Generator().manual_seed(2)).tolist()
    stream: list[int] = []
    for number in order:
        stream += [*tokenizer(parts[number]).input_ids, tokenizer.eos_token_id]
    return torch.tensor(stream[: len(stream) // length * length]).view(-1, length)


def hidden_masks(rows: int, length: int, block: int, counts: Tensor, generator: torch.Generator) -> Tensor:
    """``counts`` (rows, blocks) random places of each block, bool (rows, length)."""
    rank = torch.rand(rows, length // block, block, generator=generator).argsort(-1).argsort(-1)
    return (rank < counts[..., None]).view(rows, length)


def read(model: Any, noisy: Tensor, clean: Tensor, hidden: Tensor, block: int) -> Tensor:
    """Logits (N, V) of the hidden tokens, N in number, from one pass over (B, L) texts with masks and without."""
    seen, places, before = noisy_and_clean(noisy.shape[1], block)
    ids = torch.cat([noisy, clean], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(
            input_ids=ids, attention_mask=seen[None, None].expand(len(ids), -1, -1, -1),
            position_ids=places[None].expand(len(ids), -1), use_cache=False,
        ).last_hidden_state  # fmt: skip
        logits = model.lm_head(states[:, before][hidden])
    logits = logits.float()
    logits[:, model.config.mask_token_id] = -math.inf
    return logits


def loss_of(model: Any, ids: Tensor, block: int, generator: torch.Generator) -> Tensor:
    """The mean over blocks of the mean cross-entropy of their masked tokens, of which there are 1 to all, uniformly.

    In a tenth of the rows the text up to some block is masked whole, and does not count, so that guidance has a branch
    without a prompt that the model knows.
    """
    count, length = ids.shape
    mask_id = model.config.mask_token_id
    counts = torch.randint(1, block + 1, (count, length // block), generator=generator)
    hidden = hidden_masks(count, length, block, counts, generator)
    ends = torch.randint(1, length // block // 2 + 1, (count,), generator=generator) * block
    ends = torch.where(torch.rand(count, generator=generator) < 0.1, ends, 0)
    lost = torch.arange(length)[None] < ends[:, None]
    clean = ids.masked_fill(lost, mask_id)
    noisy = ids.masked_fill(lost | hidden, mask_id)
    hidden = hidden & ~lost
    hidden[:, 0] = False
    losses = torch.nn.functional.cross_entropy(read(model, noisy, clean, hidden, block), ids[hidden], reduction="none")
    weights = (1.0 / counts).repeat_interleave(block, 1)[hidden]
    return (losses * weights).sum() / weights.sum()


def train(wrapped: Any, rows: Tensor, arguments: argparse.Namespace) -> list[list[float]]:
    """AdamW, warm-up and cosine by the minutes of training; the step, its minute and its loss, one entry a step."""
    model, work = wrapped.get_base_model(), arguments.work
    parameters = {name: value for name, value in wrapped.named_parameters() if value.requires_grad}
    names = ("block", "rank", "batch", "length", "rate", "minutes", "written")
    checkpoint.begin(work, {name: getattr(arguments, name) for name in names})
    optimizer = torch.optim.AdamW(parameters.values(), lr=arguments.rate, weight_decay=0.0, betas=(0.9, 0.98))
    losses = checkpoint.resume(work, parameters, optimizer)
    log = work / "curve.json"
    curve = json.loads(log.read_text(encoding="utf-8"))[: len(losses)] if losses else []
    spent = curve[-1][1] if curve else 0.0
    begun = saved = time.monotonic()
    model.train()
    while spent < arguments.minutes:
        step = len(losses)
        generator = torch.Generator().manual_seed(step)
        share = (1 + math.cos(math.pi * spent / arguments.minutes)) / 2
        for group in optimizer.param_groups:
            group["lr"] = arguments.rate * min(1.0, (step + 1) / 30) * share
        chosen = rows[torch.randint(len(rows), (arguments.batch,), generator=generator)]
        loss = loss_of(model, chosen, arguments.block, generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        now = time.monotonic()
        spent += (now - begun) / 60
        begun = now
        curve.append([step + 1, round(spent, 4), losses[-1]])
        if now - saved > SAVE_EVERY or spent >= arguments.minutes:
            write_json(log, curve, indent=None)
            checkpoint.save(work, parameters, optimizer, losses)
            saved = now
            recent = losses[-50:]
            print(f"step {step + 1}, {spent:.1f} min, loss {sum(recent) / len(recent):.4f}", flush=True)
    model.eval()
    return curve


@torch.no_grad()
def own_perplexity(model: Any, rows: Tensor) -> float:
    """The perplexity of the language model on the tokens after the prompt."""
    total = 0.0
    for part in rows.split(16):
        logp = model(input_ids=part).logits[:, PROMPT - 1 : -1].float().log_softmax(-1)
        total -= float(logp.gather(-1, part[:, PROMPT:, None]).sum())
    return math.exp(total / rows[:, PROMPT:].numel())


@torch.no_grad()
def bound_of(model: Any, rows: Tensor, block: int) -> float:
    """An upper bound on the perplexity of the tokens after the prompt.

    Each block is filled after the true blocks before it, in a random order: every number of masks occurs once.
    """
    mask_id, blocks = model.config.mask_token_id, rows.shape[1] // block
    given = torch.arange(rows.shape[1]) < PROMPT
    total = torch.zeros(len(rows))
    generator = torch.Generator().manual_seed(3)
    for turn in range(block):
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            counts = 1 + (turn + torch.arange(blocks)[None] + torch.arange(len(part))[:, None]) % block
            hidden = hidden_masks(len(part), rows.shape[1], block, counts, generator) & ~given
            log_probs = read(model, part.masked_fill(hidden, mask_id), part, hidden, block).log_softmax(-1)
            losses = -log_probs.gather(-1, part[hidden][:, None])[:, 0]
            weights = (1.0 / counts).repeat_interleave(block, 1)[hidden]
            total.index_add_(0, start + hidden.nonzero()[:, 0], losses * weights)
    # The mean over numbers of masks of block/number · Σ −log p, summed over blocks, for each token.
    return math.exp(float((total / TARGET).mean()))


def write_adapter(wrapped: Any, folder: Path, facts: dict[str, Any], bound: float, language: float) -> None:
    """Write the adapter in bfloat16, the facts that :func:`textguide.diffusion.load` reads, and a card.

    Raises:
        ValueError: it has more than 10 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for value in wrapped.parameters():
        if value.requires_grad:
            value.data = value.data.to(torch.bfloat16)
    wrapped.peft_config["default"].base_model_name_or_path = facts["base"]
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    (folder / "adapter_model.safetensors").chmod(0o644)
    size = sum(path.stat().st_size for path in folder.iterdir())
    if size > 10e6:
        raise ValueError(f"the adapter has {size:,} bytes, and 10 MB is the most; take a smaller --rank")
    write_json(folder / CARD, facts)
    card = README.format(
        **{**facts, "fingerprint": facts["model_fingerprint"], "block": facts["block_size"], "mask": MASK},
        held=HELD_OUT, bound=bound, language=language,
    )  # fmt: skip
    (folder / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
