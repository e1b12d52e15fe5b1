"""``textguide lookahead``: distil a hidden Markov model of a model, for ``AWRS(constraint, lookahead=FILE)``."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("lookahead", help="train what is foreseen under a constraint", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="let the model write, and fit a hidden Markov model to its texts")
    train.add_argument("--out", required=True, metavar="FILE", help="where it goes, a safetensors file")
    train.add_argument("--overwrite", action="store_true", help="replace that file")
    train.add_argument("--states", type=int, default=128, help="hidden states [%(default)s]")
    train.add_argument("--tokens", type=int, default=200_000, help="tokens that the model writes [%(default)s]")
    train.add_argument("--length", type=int, default=64, help="tokens of a text, its opening included [%(default)s]")
    train.add_argument("--openings", metavar="FILE", help="beginnings of half of the texts, one a line, cut to a third")
    train.add_argument("--rounds", type=int, default=10, help="of expectation maximisation [%(default)s]")
    train.add_argument("--batch-size", type=int, default=64, help="texts written at once [%(default)s]")
    train.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Write, fit, save, and say how well texts that were held out are foretold."""
    from rich.console import Console
    from rich.progress import Progress

    from ..constraints import Vocabulary
    from ..smc.lookahead import training

    out = Path(arguments.out)
    for name, least in (("states", 1), ("tokens", 1), ("length", 4), ("rounds", 0), ("batch_size", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be {least} or more")
    if out.exists() and not arguments.overwrite:
        raise ValueError(f"--out {out} exists; name another file, or add --overwrite to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    lines = [] if arguments.openings is None else _lines(arguments.openings)
    model, tokenizer = options.load(arguments)
    vocabulary = Vocabulary.of(tokenizer, model.config.get_text_config(decoder=True).vocab_size)
    openings = _openings(arguments, tokenizer, vocabulary, lines)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        writing = bar.add_task("writing", total=arguments.tokens)
        samples = training.sample(
            _reader(model), openings, arguments.length, sorted(vocabulary.ends), batch_size=arguments.batch_size,
            seed=arguments.seed, device=model.device, progress=lambda n: bar.advance(writing, n),
        )  # fmt: skip
        fitting = bar.add_task("fitting", total=arguments.rounds)
        held = samples.part(20)
        found = training.fit(
            samples.part(20, rest=True), arguments.states, rounds=arguments.rounds, seed=arguments.seed,
            progress=lambda number, value: bar.advance(fitting),
        )  # fmt: skip
    report = {
        "model": arguments.model, "tokens": int(samples.counts.sum()), "rounds": arguments.rounds,
        "nats": -training.log_likelihood(found, held), "unigram_nats": training.unigram_nats(samples, held),
    }  # fmt: skip
    found.save(out, report)
    print(f"{report['tokens']} tokens; held out texts: {report['nats']:.3f} nats a token, ", end="")
    print(f"{report['unigram_nats']:.3f} by the tokens' mean probabilities; wrote {out}")
    return 0


def _reader(model: Any) -> Any:
    from ..forward import caches

    name = caches.cache_argument(model)

    def read(tokens: Any, cache: Any) -> tuple[Any, Any, Any]:
        cache = caches.new_cache(model) if cache is None else cache
        out = model(tokens, use_cache=True, output_hidden_states=True, **{name: cache})
        return out.logits, out.hidden_states[-1], cache

    return read


def _lines(path: str) -> list[str]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ValueError(f"--openings {path} cannot be read ({error.strerror}); check the path") from error
    if not any(line.strip() for line in lines):
        raise ValueError(f"--openings {path} is empty; write a beginning on each line")
    return [line for line in lines if line.strip()]


def _openings(arguments: argparse.Namespace, tokenizer: Any, vocabulary: Any, lines: list[str]) -> list[list[int]]:
    """Beginnings of the texts: half of them lines, the others single tokens."""
    rng = random.Random(arguments.seed)
    longest = max(1, arguments.length // 3)
    texts = max(20, -(-arguments.tokens // (arguments.length - 1)))
    tokens = [token for token, text in enumerate(vocabulary.tokens) if text]
    start = tokenizer.bos_token_id
    singles = [[start] if start is not None and number % 4 == 0 else [rng.choice(tokens)] for number in range(texts)]
    if not lines:
        return singles
    sizes = [size for size in (2, 4, 8, longest) if size <= longest]
    given = [tokenizer(line, add_special_tokens=False).input_ids for line in rng.choices(lines, k=texts // 2)]
    # Of few lengths, so that texts of one length are written together.
    cut = [ids[: max(size for size in (1, *sizes) if size <= len(ids))] for ids in given if ids]
    return [*singles[: texts - len(cut)], *cut]
