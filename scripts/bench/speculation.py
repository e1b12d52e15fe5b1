"""Plain ``generate`` against guided decoding with and without speculation, at batch 1, on four kinds of text.

Ratios are taken within each round and prompt, in wall time and in processor time. If guided outputs differ, the gap in
log-probability between the first two tokens that differ is reported::

    python scripts/bench/speculation.py --json docs/results/speculation.json
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from typing import Any

import timing

import textguide
from textguide import CFG, Speculation
from textguide.engine.results import GenerateResult

PASSAGE = (
    "The lighthouse keeper wrote in his diary that the storm had broken three windows on the north side, that the "
    "supply boat would not come before Thursday, and that the lamp needed oil."
)
CODE = """def area(shape):
    if shape.kind == "circle":
        return 3.14159 * shape.radius * shape.radius
    if shape.kind == "square":
        return shape.side * shape.side
    raise ValueError(shape.kind)
"""
FACTS = (
    "Anna Berg, born 1961 in Oslo, teacher.\nPaul Weiss, born 1974 in Graz, baker.\n"
    "Maria Silva, born 1983 in Porto, nurse.\n"
)
NAMES = "Anna Berg, Oslo\nPaul Weiss, Graz\nMaria Silva, Porto\n"
PROMPTS = {
    "free text": [
        "The dragon flew over Paris, France, and",
        "My grandmother always told me that",
        "In the summer of 1914 the city",
    ],
    "code": [
        'def fibonacci(n):\n    """Return the n-th Fibonacci number."""\n',
        "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n",
        "import csv\n\ndef read_rows(path):\n    with open(path) as file:\n",
    ],
    "copies and edits": [
        f"Text:\n{PASSAGE}\n\nThe same text, copied:\n{PASSAGE}\n\nThe same text, copied once more:\n",
        f"# before\n{CODE}\n# after: constants named\n{CODE.replace('3.14159', 'PI')}\n# after: with a docstring\n",
        f"{FACTS}\nAs a list of names and towns:\n{NAMES}\nAll records again:\n",
    ],
    "repetitive": [
        "Q: What is 2+2? A: 4\nQ: What is 3+3? A: 6\nQ: What is 4+4? A: 8\nQ:",
        "1. The red house is red. 2. The blue house is blue. 3. The green house is green. 4. The",
        "Monday: open 9 to 5. Tuesday: open 9 to 5. Wednesday:",
    ],
}


def main() -> None:
    defaults = Speculation()
    parser = timing.parser(__doc__, repeats=3)
    parser.add_argument("--new", type=int, default=64, help="tokens generated")
    parser.add_argument("--prompts", type=int, default=3, help="prompts of each kind, at most 3")
    parser.add_argument("--scale", type=float, default=1.5)
    parser.add_argument("--temperature", type=float, help="sample; default: greedy")
    parser.add_argument("--drafts", nargs="+", default=["prompt-lookup", "recycling"], help="of Speculation")
    parser.add_argument("--tokens", type=int, default=defaults.tokens, help="of Speculation")
    parser.add_argument("--least", type=float, default=defaults.least, help="of Speculation")
    parser.add_argument("--worth", type=float, default=defaults.worth, help="of Speculation")
    parser.add_argument("--kinds", nargs="+", default=list(PROMPTS), choices=list(PROMPTS), help="of text")
    arguments = parser.parse_args()
    model, tokenizer = timing.load(arguments)
    results = [measure(model, tokenizer, kind, arguments) for kind in arguments.kinds]
    rows = [{"kind": result["kind"], **row} for result in results for row in result["rows"]]
    columns = {
        "text": "{kind}",
        "method": "{method}",
        "ms per token": "{ms_a_token:.1f}",
        "× plain": "{ratio:.2f}",
        "cpu ms": "{cpu_ms_a_token:.1f}",
        "cpu × plain": "{cpu_ratio:.2f}",
        "cpu × guided": "{cpu_to_guided:.2f}",
        "acceptance": "{acceptance:.0%}",
        "tokens per pass": "{tokens_per_pass:.2f}",
        "differences": "{differences}",
    }
    timing.show(rows, columns, "batch 1; medians; ratios within each round and prompt")
    timing.finish(arguments, model, results=results)


def measure(model: Any, tokenizer: Any, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Medians over the prompts of one kind."""
    prompts = PROMPTS[kind][: arguments.prompts]
    write = partial(guided, model, tokenizer, arguments)
    contestants = {"plain": partial(plain, model, tokenizer, arguments), "guided": partial(write, None)}
    for draft in arguments.drafts:
        contestants[f"guided, {draft}"] = partial(write, draft)
    calls = {(prompt, name): partial(call, prompt) for prompt in prompts for name, call in contestants.items()}
    # The first calls of a process are slow; later kinds find everything warm.
    warmup = 1 if kind == arguments.kinds[0] else 0
    times = timing.compare(calls, arguments.repeats, model.device, warmup=warmup, title=kind)

    wall: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    outputs: dict[str, list[Any]] = {}
    for name in contestants:
        of_prompts = [times[prompt, name] for prompt in prompts]
        wall[name] = [value for one in of_prompts for value in one.seconds]
        processor[name] = [value for one in of_prompts for value in one.processor_seconds]
        outputs[name] = [one.results[-1] for one in of_prompts]
    rows = []
    for name in contestants:
        row: dict[str, Any] = {
            "method": name,
            "ms_a_token": 1e3 * statistics.median(wall[name]) / arguments.new,
            "cpu_ms_a_token": 1e3 * statistics.median(processor[name]) / arguments.new,
            "ratio": timing.ratio(wall[name], wall["plain"]),
            "cpu_ratio": timing.ratio(processor[name], processor["plain"]),
            "to_guided": timing.ratio(wall[name], wall["guided"]),
            "cpu_to_guided": timing.ratio(processor[name], processor["guided"]),
        }
        if name not in ("plain", "guided"):
            row |= accepted(outputs[name], outputs["guided"])
        rows.append(row)
    return {"kind": kind, "prompts": prompts, "rows": rows}


def plain(model: Any, tokenizer: Any, arguments: argparse.Namespace, prompt: str) -> None:
    """transformers' own ``generate``."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    sampling = {"do_sample": True, "temperature": arguments.temperature} if arguments.temperature else {}
    options = {"do_sample": False, **sampling}
    model.generate(**inputs, max_new_tokens=arguments.new, min_new_tokens=arguments.new, pad_token_id=2, **options)


def guided(model: Any, tokenizer: Any, arguments: argparse.Namespace, draft: str | None, prompt: str) -> GenerateResult:
    """Classifier-free guidance, with guesses by ``draft`` if it is not None."""
    sampling = {"temperature": arguments.temperature, "seed": 0} if arguments.temperature else {}
    speculation = None
    if draft is not None:
        speculation = Speculation(draft, tokens=arguments.tokens, least=arguments.least, worth=arguments.worth)
    return textguide.generate(
        model,
        tokenizer,
        [prompt],
        CFG(arguments.scale),
        max_new_tokens=arguments.new,
        min_new_tokens=arguments.new,
        speculation=speculation,
        **sampling,
    )


def accepted(outputs: list[GenerateResult], guided: list[GenerateResult]) -> dict[str, Any]:
    """How many guesses were right, and how far the texts differ from those without speculation."""
    reports = [output.speculation for output in outputs]
    drafted = sum(report.drafted for report in reports)
    gaps = [difference(one, other) for one, other in zip(guided, outputs, strict=True)]
    return {
        "acceptance": sum(report.accepted for report in reports) / max(1, drafted),
        "drafted": drafted,
        "tokens_per_pass": sum(report.steps for report in reports) / sum(report.passes for report in reports),
        "differences": [gap for gap in gaps if gap is not None],
    }


def difference(one: GenerateResult, other: GenerateResult) -> float | None:
    """The gap between the log-probabilities of the first two tokens that differ; None if all are the same.

    Rounding decides between tokens whose gap is below about 1e-5.
    """
    for position, (a, b) in enumerate(zip(one.new_tokens[0], other.new_tokens[0], strict=True)):
        if a != b:
            return abs(float(one.log_probs[0, position] - other.log_probs[0, position]))
    return None


if __name__ == "__main__":
    main()
