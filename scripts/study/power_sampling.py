"""Power sampling against temperature sampling on HumanEval: do texts of p^α pass their tests more often?

    python scripts/study/power_sampling.py --model "$(python scripts/bench/larger_model.py)" --output FOLDER \
        --json docs/results/power-sampling.json

A problem is sampled three times, with as many texts each: at temperature 1, at temperature 1/α, and under
``PowerSampling(α)``. The texts at temperature 1/α have the weights of power sampling too, without resampling:
importance sampling is a fourth way from the same texts. A problem's value is the probability that one draw passes, the
mean over texts, by their weights where they have some. Each problem is journaled when it is done, and a killed run goes
on.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import textguide
from textguide import PowerSampling
from textguide.eval.results.journal import Journal
from textguide.eval.results.machine import environment
from textguide.eval.statistics.intervals import mean_interval
from textguide.eval.statistics.paired import adjust, compare_items
from textguide.support.files import write_json
from textguide.tasks.loaders import humaneval
from textguide.tasks.sandbox import run_program

STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where the task ends a program, as lm-eval does."""
PLAIN, COLD, IMPORTANCE, POWER = "temperature 1", "temperature 1/α", "importance weights", "power sampling"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--output", type=Path, required=True, help="folder of the journal")
    parser.add_argument("--limit", type=int, default=164, help="problems, evenly spaced over the 164 [%(default)s]")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--texts", type=int, default=8, help="texts a problem and way [%(default)s]")
    parser.add_argument("--tokens", type=int, default=256, help="limit of tokens [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    transformers.utils.logging.set_verbosity_error()
    problems = list(humaneval()["test"])
    problems = [problems[number * len(problems) // arguments.limit] for number in range(arguments.limit)]
    model, tokenizer = textguide.load(arguments.model, dtype=arguments.dtype)
    settings = {
        "model": Path(arguments.model).name,
        "dtype": str(model.dtype),
        **{name: getattr(arguments, name) for name in ("alpha", "texts", "tokens", "seed")},
    }
    with Journal.open(arguments.output / "journal.jsonl", settings) as journal:
        for number, problem in enumerate(problems):
            if problem["task_id"] not in journal:
                journal.append(problem["task_id"], solve(model, tokenizer, problem, arguments))
            record = journal.done[problem["task_id"]]
            shown = "  ".join(f"{way} {value:.2f}" for way, value in record["passes"].items())
            print(f"{number + 1}/{len(problems)} {problem['task_id']}: {shown}  {record['seconds']:.0f} s", flush=True)
        records = [journal.done[problem["task_id"]] for problem in problems]
    found = summary(records)
    for row in found["ways"]:
        print(f"{row['way']:20} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]")
    for row in found["against temperature 1/α"]:
        ends = f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        print(f"{row['label']:20} {row['difference']:+.3f} {ends} p (Holm) {row['p_holm']:.3f}")
    if arguments.json:
        versions, machine = environment()
        about = {"settings": {**settings, "problems": len(problems)}, "versions": versions, "machine": machine}
        write_json(arguments.json, {**about, **found})


def solve(model: Any, tokenizer: Any, problem: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """What each way does on one problem."""
    begun = time.perf_counter()
    # What the model's own configuration adds (a penalty, a nucleus) would move the target.
    options: dict[str, Any] = {
        "max_new_tokens": arguments.tokens, "stop": STOP, "seed": arguments.seed, "temperature": 1.0, "top_k": 0,
        "top_p": 1.0, "repetition_penalty": 1.0, "do_sample": True, "eos_token_id": ends(model, tokenizer),
    }  # fmt: skip

    def write(guidance: Any, **more: Any) -> Any:
        return textguide.generate(model, tokenizer, [problem["prompt"]], guidance, **options, **more)

    alpha, texts = arguments.alpha, arguments.texts
    plain = write(None, num_return_sequences=texts)
    cold = write(PowerSampling(alpha, texts, ess_threshold=0.0))
    power = write(PowerSampling(alpha, texts))
    passed = {way: passes(out.texts, problem) for way, out in ((PLAIN, plain), (COLD, cold), (POWER, power))}
    even = torch.zeros(texts, dtype=torch.float64)
    return {
        "passes": {
            PLAIN: mean(passed[PLAIN], even),
            COLD: mean(passed[COLD], even),
            IMPORTANCE: mean(passed[COLD], cold.log_weights),
            POWER: mean(passed[POWER], power.log_weights),
        },
        "ess": {IMPORTANCE: float(cold.ess[0]), POWER: float(power.ess[0])},
        "log_evidence": {IMPORTANCE: float(cold.log_evidence[0]), POWER: float(power.log_evidence[0])},
        "tokens": {way: sum(map(len, out.new_tokens)) for way, out in ((PLAIN, plain), (COLD, cold), (POWER, power))},
        "distinct": {way: len(set(out.texts)) for way, out in ((PLAIN, plain), (COLD, cold), (POWER, power))},
        "seconds": time.perf_counter() - begun,
    }


def ends(model: Any, tokenizer: Any) -> list[int]:
    """The model's end tokens, and the one behind documents, which a chat model's configuration may not name."""
    named = model.generation_config.eos_token_id
    document = tokenizer.get_vocab().get("<|endoftext|>")
    found = {*(named if isinstance(named, list) else [named]), document, tokenizer.eos_token_id}
    return sorted(token for token in found if token is not None)


def passes(texts: list[str], problem: dict[str, Any]) -> list[float]:
    """1 for every text that passes the problem's tests; equal texts are run once."""
    tests = f"{problem['test']}\ncheck({problem['entry_point']})"
    known: dict[str, float] = {}
    for text in texts:
        program = text[: min((text.find(stop) for stop in STOP if stop in text), default=len(text))]
        if text not in known:
            known[text] = float(run_program(f"{problem['prompt']}{program}\n{tests}").passed)
    return [known[text] for text in texts]


def mean(values: list[float], log_weights: torch.Tensor) -> float:
    """The mean of ``values`` by weights."""
    return float((log_weights.softmax(0) * torch.tensor(values, dtype=torch.float64)).sum())


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals, and differences to the low temperature on the same problems."""
    ways = list(records[0]["passes"])
    values = {way: [record["passes"][way] for record in records] for way in ways}
    rows = [{"way": way, **mean_interval(values[way])._asdict()} for way in ways]
    others = [way for way in ways if way != COLD]
    against = [
        compare_items(values[way], values[COLD], task="humaneval", metric="pass", label=way, baseline=COLD)
        for way in others
    ]
    sizes = {way: math.fsum(record["ess"][way] for record in records) / len(records) for way in records[0]["ess"]}
    return {
        "ways": rows,
        "against temperature 1/α": [one.to_dict() for one in adjust(against)],
        "mean ess": sizes,
        "seconds a problem": math.fsum(record["seconds"] for record in records) / len(records),
        "problems": records,
    }


if __name__ == "__main__":
    main()
