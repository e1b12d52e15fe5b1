"""Effective sample sizes without and with each lookahead, for a pattern that the model finds unlikely::

    python scripts/bench/lookahead.py [--populations 40] [--hmm FILE] [--value FILE]

``textguide lookahead train --kind value`` learns a value for ``--value`` from texts of the same prompt and pattern.
"""

from __future__ import annotations

import statistics
import warnings
from functools import partial

import timing

import textguide
from textguide import AWRS
from textguide.constraints import Regex
from textguide.support.errors import NoParticleLeftWarning

PATTERN = "(19|20)[0-9]{2}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
PROMPT = "My favourite fruit is "


def main() -> None:
    parser = timing.parser(__doc__)
    parser.add_argument("--pattern", default=PATTERN)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--particles", type=int, default=10)
    parser.add_argument("--populations", type=int, default=40)
    parser.add_argument("--together", type=int, default=20, help="populations in one batch")
    parser.add_argument("--tokens", type=int, default=16, help="the longest text")
    parser.add_argument("--threshold", type=float, default=0.5, help="effective sample size below which rows resample")
    parser.add_argument("--hmm", metavar="FILE", help="a hidden Markov model, or hmm: the bundled one")
    parser.add_argument("--value", metavar="FILE")
    arguments = parser.parse_args()
    model, tokenizer = timing.load(arguments)
    warnings.simplefilter("ignore", NoParticleLeftWarning)
    lookaheads = {"none": None, "automaton": "automaton", "hmm": arguments.hmm, "value": arguments.value}
    contestants = {}
    for name, lookahead in lookaheads.items():
        if lookahead is None and name != "none":
            continue
        guidance = AWRS(Regex(arguments.pattern), arguments.particles, arguments.threshold, lookahead=lookahead)
        for start in range(0, arguments.populations, arguments.together):
            prompts = [arguments.prompt] * min(arguments.together, arguments.populations - start)
            contestants[name, start] = partial(
                textguide.generate, model, tokenizer, prompts, guidance, max_new_tokens=arguments.tokens, seed=start
            )
    times = timing.compare(contestants, 1, model.device, warmup=0)
    rows = []
    for name in dict.fromkeys(name for name, _ in times):
        parts = [one for (other, _), one in times.items() if other == name]
        outputs = [one.results[0] for one in parts]
        sizes = [size for out in outputs for size in out.ess.tolist()]
        evidence = [value for out in outputs for value in out.log_evidence.exp().tolist()]
        texts = [text for out in outputs for text in out.texts]
        populations = [texts[at : at + arguments.particles] for at in range(0, len(texts), arguments.particles)]
        error = statistics.stdev(evidence) / len(evidence) ** 0.5 if len(evidence) > 1 else None
        rows.append(
            {
                "lookahead": name,
                "median_ess": statistics.median(sizes),
                "evidence": statistics.mean(evidence),
                "standard_error": error,
                "different_texts": statistics.mean(len(set(population)) for population in populations),
                "seconds": sum(one.seconds[0] for one in parts),
            }
        )
    columns = {
        "lookahead": "{lookahead}",
        "median ESS": "{median_ess:.2f}",
        "P(constraint)": "{evidence:.2e}",
        "standard error": "{standard_error}",
        "different texts": "{different_texts:.1f}",
        "s": "{seconds:.1f}",
    }
    timing.show(rows, columns, f"{arguments.populations} populations of {arguments.particles}")
    timing.finish(arguments, model, rows=rows)


if __name__ == "__main__":
    main()
