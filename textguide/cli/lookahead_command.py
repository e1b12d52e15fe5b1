"""``textguide lookahead``."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from ..support import files
from ..support.checks import whole_number
from . import constraint_options, options
from .parser import add_command
from .progress import progress_bar

HMM = "hmm"
VALUE = "value"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = add_command(
        commands,
        "lookahead",
        description="Train a prediction of whether a text can still satisfy a constraint, for --lookahead FILE: a "
        "hidden Markov model of a model's texts, for all regular constraints, or a value of one constraint, learned "
        "from rollouts.",
        examples=(
            "lookahead train --out hmm.safetensors",
            "lookahead train --kind value --prompts prompts.txt --regex PATTERN --out value.safetensors",
        ),
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="generate texts, and fit a hidden Markov model or a value to them")
    train.add_argument("--kind", choices=(HMM, VALUE), default=HMM, help="kind of lookahead [%(default)s]")
    train.add_argument("--out", required=True, metavar="FILE", help="a safetensors file")
    train.add_argument("--overwrite", action="store_true", help="replace that file")
    train.add_argument("--batch-size", type=int, default=64, help="texts per batch [%(default)s]")
    train.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    group = train.add_argument_group("--kind hmm")
    group.add_argument("--states", type=int, default=128, help="hidden states [%(default)s]")
    group.add_argument("--tokens", type=int, default=200_000, help="number of generated tokens [%(default)s]")
    group.add_argument("--length", type=int, default=64, help="tokens per text, including its opening [%(default)s]")
    group.add_argument(
        "--openings", metavar="FILE", help="beginnings of half of the texts, one per line; cut to a third of --length"
    )
    group.add_argument("--rounds", type=int, default=10, help="rounds of expectation maximisation [%(default)s]")
    group = train.add_argument_group("--kind value, of the constraint below")
    group.add_argument("--prompts", metavar="FILE", help="one prompt per line, as for textguide generate --file")
    group.add_argument("--rollouts", type=int, default=200, help="texts per prompt [%(default)s]")
    group.add_argument("--max-new-tokens", type=int, default=64, help="longest text [%(default)s]")
    group.add_argument("--temperature", type=float, default=1.0, help="temperature of sampling [%(default)s]")
    constraint_options.add_constraint(train)
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Check the arguments before a model is loaded; then train."""
    least = {"states": 1, "tokens": 1, "length": 4, "rounds": 0, "batch_size": 1, "rollouts": 1, "max_new_tokens": 1}
    for name, value in least.items():
        whole_number(name, getattr(arguments, name), value)
    if not 0 < arguments.temperature < float("inf"):
        raise ValueError(f"--temperature {arguments.temperature} must be a number above 0")
    other = {HMM: ("prompts", *constraint_options.CONSTRAINTS, "after"), VALUE: ("openings",)}[arguments.kind]
    for name in other:
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(
                f"{option} does not work with --kind {arguments.kind}; leave it out, or use the other kind"
            )
    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite:
        raise ValueError(f"--out {out} exists; name another file, or add --overwrite to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    files.writable_file(out, "--out")
    return _value(arguments, out) if arguments.kind == VALUE else _hidden_markov(arguments, out)


def _hidden_markov(arguments: argparse.Namespace, out: Path) -> int:
    """Generate, fit, save, and report the likelihood of held-out texts."""
    from ..constraints import Vocabulary
    from ..forward.reader import states_reader
    from ..smc.lookahead import training

    lines = []
    if arguments.openings is not None:
        lines = options.read_lines(arguments.openings, "--openings", "a beginning")
    model, tokenizer = options.load(arguments)
    vocabulary = Vocabulary.of(tokenizer, model.config.get_text_config(decoder=True).vocab_size)
    openings = _openings(arguments, tokenizer, vocabulary, lines)
    with progress_bar() as bar:
        writing = bar.add_task("writing", total=arguments.tokens)
        samples = training.sample(
            states_reader(model),
            openings,
            arguments.length,
            sorted(vocabulary.ends),
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            device=model.device,
            progress=lambda tokens: bar.advance(writing, tokens),
        )
        fitting = bar.add_task("fitting", total=arguments.rounds)
        held_out = samples.part(20)
        markov = training.fit(
            samples.part(20, rest=True),
            arguments.states,
            rounds=arguments.rounds,
            seed=arguments.seed,
            progress=lambda number, value: bar.advance(fitting),
        )
    report = {
        "model": arguments.model,
        "tokens": int(samples.counts.sum()),
        "rounds": arguments.rounds,
        "nats": -training.log_likelihood(markov, held_out),
        "unigram_nats": training.unigram_nats(samples, held_out),
    }
    markov.save(out, report)
    print(f"{report['tokens']} tokens; held-out texts: {report['nats']:.3f} nats per token, ", end="")
    print(f"{report['unigram_nats']:.3f} with the tokens' mean probabilities; wrote {out}")
    return 0


def _value(arguments: argparse.Namespace, out: Path) -> int:
    """Generate texts under the constraint, fit, save, and report how many satisfied it."""
    from ..engine.branch_inputs import canonical_prompts, encode
    from ..forward.reader import scores_reader
    from ..guidance import AWRS
    from ..smc.lookahead import value
    from ..smc.rollouts import rollouts
    from ..smc.starting import constraint_of, vocabulary_of

    described = constraint_options.constraint(arguments)
    if described is None:
        raise ValueError(
            "--kind value needs a constraint; add --regex, --json-schema, --grammar, --quote or --constraint"
        )
    if arguments.prompts is None:
        raise ValueError(
            "--kind value needs --prompts, a file with one prompt per line, similar to those of later runs"
        )
    lines = options.read_prompts(argparse.Namespace(prompt=None, file=arguments.prompts))
    constraint = constraint_of(AWRS(described, after=arguments.after))
    model, tokenizer = options.load(arguments)
    vocabulary = vocabulary_of(model, model.generation_config, tokenizer)
    prompts = [encode(prompt, tokenizer, "--prompts") for prompt in canonical_prompts(lines, None, tokenizer)]
    with progress_bar() as bar:
        writing = bar.add_task("writing", total=len(prompts) * arguments.rollouts)
        texts = rollouts(
            scores_reader(model),
            prompts,
            constraint,
            vocabulary,
            number=arguments.rollouts,
            limit=arguments.max_new_tokens,
            temperature=arguments.temperature,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            device=model.device,
            progress=lambda count: bar.advance(writing, count),
        )
    about = {
        "model": arguments.model,
        "prompts": len(prompts),
        "rollouts": arguments.rollouts,
        "max_new_tokens": arguments.max_new_tokens,
        "temperature": arguments.temperature,
    }
    learned = value.fit(texts, constraint, vocabulary, about)
    learned.save(out)
    members = float(texts.values.isfinite().double().mean())
    print(f"{len(prompts) * arguments.rollouts} texts, {len(texts.values)} tokens, ", end="")
    print(f"{members:.0%} of them in valid texts, {len(learned.heads)} heads; wrote {out}")
    return 0


def _openings(arguments: argparse.Namespace, tokenizer: Any, vocabulary: Any, lines: list[str]) -> list[list[int]]:
    """Beginnings of the texts: half of them are lines, the others single tokens."""
    rng = random.Random(arguments.seed)
    longest = max(1, arguments.length // 3)
    texts = max(20, -(-arguments.tokens // (arguments.length - 1)))
    tokens = [token for token, text in enumerate(vocabulary.tokens) if text]
    start = tokenizer.bos_token_id
    singles = [[start] if start is not None and number % 4 == 0 else [rng.choice(tokens)] for number in range(texts)]
    if not lines:
        return singles
    sizes = [size for size in (2, 4, 8, longest) if size <= longest]
    encoded = [tokenizer(line, add_special_tokens=False).input_ids for line in rng.choices(lines, k=texts // 2)]
    # Few different lengths, so that texts of the same length are generated together.
    cut = [ids[: max(size for size in (1, *sizes) if size <= len(ids))] for ids in encoded if ids]
    return [*singles[: texts - len(cut)], *cut]
