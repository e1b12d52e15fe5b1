"""GSM8K by chain of thought under methods that read as many rows: guidance, votes, forks and particles.

    python scripts/study/gsm8k_costs.py --model "$(python scripts/bench/larger_model.py)" --data DATA --limit 24 \
        --output FOLDER --json docs/results/larger/gsm8k-costs.json

Rows are texts times branches, what a step of decoding reads. One row: plain decoding. Two: classifier-free guidance,
and a vote of two is none. Eight: a vote of eight samples (self-consistency, arXiv 2203.11171), of four guided samples,
of up to eight forks (EAGer, 2510.11170), and one text of eight particles (power sampling, 2510.14901). Worked examples
and the rule for the answer are those of lm-eval's task. The answers of every batch are kept; a killed run goes on.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers

import textguide
from textguide import CFG, EAGer, PowerSampling
from textguide.eval.results.journal import Journal
from textguide.eval.results.machine import environment
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import adjust, compare_items
from textguide.support.files import write_json
from textguide.tasks.gsm8k import exemplars
from textguide.tasks.loaders import gsm8k

ANSWER = re.compile(r"The answer is (-?[0-9.,]+)")
"""The task's strict filter."""
TEMPERATURE = 0.6
COLD = PowerSampling(1 / TEMPERATURE, 8, ess_threshold=0.0)
"""Eight samples at the temperature, whose prompt is read once; their weights would make it power sampling."""
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "greedy": (None, {}),
    "greedy, CFG 1.25": (CFG(1.25), {}),
    "greedy, CFG 1.5": (CFG(1.5), {}),
    "eight samples": (COLD, {"do_sample": True, "temperature": 1.0}),
    "four samples, CFG 1.25": (CFG(1.25), {"do_sample": True, "temperature": TEMPERATURE, "num_return_sequences": 4}),
    "forks": (EAGer(entropy_threshold=1.0, max_branches=8), {"do_sample": True, "temperature": TEMPERATURE}),
    "particles": (PowerSampling(4.0, 8), {"do_sample": True, "temperature": 1.0}),
}
SINGLE, VOTE = "one of eight samples", "vote of eight"
ROWS = {"greedy": 1, "greedy, CFG 1.25": 2, "greedy, CFG 1.5": 2, SINGLE: 1, "vote of two": 2, "vote of four": 4,
        VOTE: 8, "vote of four, CFG 1.25": 8, "vote of forks": 8, "power sampling": 8}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--data", help="folder of the data files [$TEXTGUIDE_DATA]")
    parser.add_argument("--limit", type=int, default=24, help="questions, the first ones [%(default)s]")
    parser.add_argument("--at-once", type=int, default=12, help="questions of a batch [%(default)s]")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--output", type=Path, required=True, help="folder of the journal")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    questions = list(gsm8k(arguments.data)["test"])[: arguments.limit]
    examples = "".join(f"Q: {one['question']}\nA: {one['target']}\n\n" for one in exemplars()[: arguments.shots])
    model, tokenizer = textguide.load(arguments.model, dtype=arguments.dtype)
    settings = {"model": Path(arguments.model).stem, "dtype": str(model.dtype), "temperature": TEMPERATURE,
                **{name: getattr(arguments, name) for name in ("at_once", "shots", "tokens")}}  # fmt: skip
    records: dict[str, list[dict[str, Any]]] = {way: [] for way in arguments.ways}
    with Journal.open(arguments.output / "journal.jsonl", settings) as journal:
        for start in range(0, len(questions), arguments.at_once):
            part = questions[start : start + arguments.at_once]
            for way in arguments.ways:
                key = f"{start}-{start + len(part)} {way}"
                if key not in journal:
                    prompts = [f"{examples}Q: {one['question']}\nA:" for one in part]
                    journal.append(key, answered(model, tokenizer, prompts, way, arguments.tokens))
                    print(key, f"{journal.done[key]['seconds']:.0f} s", flush=True)
                records[way].append(journal.done[key])
    found = summary(records, [compared(one["answer"].split("####")[-1]) for one in questions])
    for row in found["ways"]:
        print(f"{row['way']:24} {row['rows']} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    for row in found["against"]:
        print(f"{row['label']:24} {row['baseline']:20} {row['difference']:+.3f} p (Holm) {row['p_holm']:.3f}")
    if arguments.json:
        versions, machine = environment()
        about = {"settings": {**settings, "questions": len(questions)}, "versions": versions, "machine": machine}
        write_json(arguments.json, {**about, **found})


def answered(model: Any, tokenizer: Any, prompts: list[str], way: str, tokens: int) -> dict[str, Any]:
    """The answers of a way to each prompt, with their weights where they have some."""
    guidance, sampling = WAYS[way]
    begun = time.perf_counter()
    out = textguide.generate(
        model, tokenizer, prompts, guidance, max_new_tokens=tokens, stop=("Q:",), seed=0, repetition_penalty=1.0,
        **{"do_sample": False, **({"top_k": 0, "top_p": 1.0} if sampling else {}), **sampling},
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    each = len(out.texts) // len(prompts)
    weights = torch.zeros(len(out.texts)) if out.log_weights is None else out.log_weights
    groups = [range(n * each, (n + 1) * each) for n in range(len(prompts))]
    # Of forks, those that were used.
    groups = [[n for n in group if out.new_tokens[n]] for group in groups]  # type: ignore[misc]
    return {
        "answers": [[compared(said(out.texts[n])) for n in group] for group in groups],
        "log_weights": [[float(weights[n]) for n in group] for group in groups],
        "tokens": sum(len(out.new_tokens[n]) for group in groups for n in group),
        "seconds": seconds,
    }


def said(text: str) -> str:
    """What a text says the answer is; empty where it does not."""
    found = ANSWER.search(text)
    return found.group(1) if found else ""


def compared(answer: str) -> str:
    """An answer as lm-eval compares it."""
    return answer.strip().replace(",", "").replace("$", "").removesuffix(".")


def vote(answers: list[str], log_weights: list[float] | None = None) -> str:
    """The answer of the most texts, or of the greatest weight; the first of several; empty where none says one."""
    weights = torch.tensor(log_weights or [0.0] * len(answers), dtype=torch.float64).softmax(0).tolist()
    sums: Counter[str] = Counter()
    for answer, weight in zip(answers, weights, strict=True):
        if answer:
            sums[answer] += round(weight, 9)
    return max(sums, key=lambda answer: sums[answer]) if sums else ""


def summary(records: dict[str, list[dict[str, Any]]], truth: list[str]) -> dict[str, Any]:
    """The share of right answers with intervals, and paired differences within an equal number of rows."""
    answers = {way: [one for part in parts for one in part["answers"]] for way, parts in records.items()}
    weights = {way: [one for part in parts for one in part["log_weights"]] for way, parts in records.items()}
    values: dict[str, list[float]] = {}
    for way, given in answers.items():
        if way == "eight samples":
            pairs = list(zip(given, truth, strict=True))
            values[SINGLE] = [sum(float(one == true) for one in eight) / len(eight) for eight, true in pairs]
            for count, name in ((2, "vote of two"), (4, "vote of four"), (8, VOTE)):
                values[name] = [float(vote(eight[:count]) == true) for eight, true in pairs]
        else:
            name = {"four samples, CFG 1.25": "vote of four, CFG 1.25", "forks": "vote of forks",
                    "particles": "power sampling"}.get(way, way)  # fmt: skip
            by = weights[way] if way == "particles" else [None] * len(given)
            values[name] = [float(vote(one, w) == true) for one, w, true in zip(given, by, truth, strict=True)]
    rows = [{"way": way, "rows": ROWS[way], **mean_interval(each)._asdict()} for way, each in values.items()]
    pairs_of = [("greedy, CFG 1.25", "greedy"), ("greedy, CFG 1.5", "greedy"), (VOTE, SINGLE), ("power sampling", VOTE),
                ("vote of four, CFG 1.25", VOTE), ("vote of forks", VOTE)]  # fmt: skip
    against = adjust(
        [
            compare_items(values[way], values[other], task="gsm8k", metric="right", label=way, baseline=other)
            for way, other in pairs_of
            if way in values and other in values
        ]
    )
    cost = {
        way: {name: sum(part[name] for part in parts) / len(truth) for name in ("tokens", "seconds")}
        for way, parts in records.items()
    }
    return {"ways": rows, "against": [one.to_dict() for one in against], "a question": cost}


if __name__ == "__main__":
    main()
