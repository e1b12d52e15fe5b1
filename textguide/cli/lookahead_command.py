"""``textguide lookahead``: train what ``AWRS(constraint, lookahead=FILE)`` foresees: a hidden Markov model of a model's
texts, for all regular constraints, or a value of one constraint, learned from rollouts."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from . import constraint_options, options

HMM, VALUE = "hmm", "value"


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("lookahead", help="train what is foreseen under a constraint", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train}")
    train = actions.add_parser("train", help="let the model write, and fit a model of its texts, or a value to them")
    train.add_argument("--kind", choices=(HMM, VALUE), default=HMM, help="what is trained [%(default)s]")
    train.add_argument("--out", required=True, metavar="FILE", help="where it goes, a safetensors file")
    train.add_argument("--overwrite", action="store_true", help="replace that file")
    train.add_argument("--batch-size", type=int, default=64, help="texts written at once [%(default)s]")
    train.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    group = train.add_argument_group("--kind hmm")
    group.add_argument("--states", type=int, default=128, help="hidden states [%(default)s]")
    group.add_argument("--tokens", type=int, default=200_000, help="tokens that the model writes [%(default)s]")
    group.add_argument("--length", type=int, default=64, help="tokens of a text, its opening included [%(default)s]")
    group.add_argument("--openings", metavar="FILE", help="beginnings of half of the texts, one a line, cut to a third")
    group.add_argument("--rounds", type=int, default=10, help="of expectation maximisation [%(default)s]")
    group = train.add_argument_group("--kind value, of the constraint below")
    group.add_argument("--prompts", metavar="FILE", help="a prompt on each line, as for textguide generate --file")
    group.add_argument("--rollouts", type=int, default=200, help="texts behind each prompt [%(default)s]")
    group.add_argument("--max-new-tokens", type=int, default=64, help="longest text [%(default)s]")
    group.add_argument("--temperature", type=float, default=1.0, help="of the draws [%(default)s]")
    constraint_options.add_constraint(train)
    options.add_model(train)
    train.set_defaults(run=run_train)


def run_train(arguments: argparse.Namespace) -> int:
    """Refuse what cannot work before a model is loaded; then train one or the other."""
    out = Path(arguments.out)
    least = {"states": 1, "tokens": 1, "length": 4, "rounds": 0, "batch_size": 1, "rollouts": 1, "max_new_tokens": 1}
    for name, value in least.items():
        if getattr(arguments, name) < value:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must be {value} or more")
    if not 0 < arguments.temperature < float("inf"):
        raise ValueError(f"--temperature {arguments.temperature} must be a number above 0")
    other = {HMM: ("prompts", *constraint_options.CONSTRAINTS, "after"), VALUE: ("openings",)}[arguments.kind]
    for name in other:
        if getattr(arguments, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} means nothing to --kind {arguments.kind}; leave it out, or name the other kind")
    if out.exists() and not arguments.overwrite:
        raise ValueError(f"--out {out} exists; name another file, or add --overwrite to replace it")
    if not out.parent.is_dir():
        raise ValueError(f"--out {out}: there is no folder {out.parent}; make it first")
    return _value(arguments, out) if arguments.kind == VALUE else _hidden_markov(arguments, out)


def _hidden_markov(arguments: argparse.Namespace, out: Path) -> int:
    """Write, fit, save, and say how well texts that were held out are foretold."""
    from rich.console import Console
    from rich.progress import Progress

    from ..constraints import Vocabulary
    from ..forward.reader import states_reader
    from ..smc.lookahead import training

    lines = [] if arguments.openings is None else _lines(arguments.openings)
    model, tokenizer = options.load(arguments)
    vocabulary = Vocabulary.of(tokenizer, model.config.get_text_config(decoder=True).vocab_size)
    openings = _openings(arguments, tokenizer, vocabulary, lines)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        writing = bar.add_task("writing", total=arguments.tokens)
        samples = training.sample(
            states_reader(model), openings, arguments.length, sorted(vocabulary.ends),
            batch_size=arguments.batch_size, seed=arguments.seed, device=model.device,
            progress=lambda n: bar.advance(writing, n),
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


def _value(arguments: argparse.Namespace, out: Path) -> int:
    """Write texts under the constraint, fit, save, and say how many became members."""
    from rich.console import Console
    from rich.progress import Progress

    from ..engine.branch_inputs import canonical_prompts, encode
    from ..forward.reader import scores_reader
    from ..guidance import AWRS
    from ..smc.lookahead import value
    from ..smc.rollouts import rollouts
    from ..smc.starting import constraint_of, vocabulary_of

    form = constraint_options.constraint(arguments)
    if form is None:
        raise ValueError("--kind value needs a constraint; add --regex, --json-schema, --grammar or --constraint")
    if arguments.prompts is None:
        raise ValueError("--kind value needs --prompts, a file with one on each line, like those of later runs")
    given = options.read_prompts(argparse.Namespace(prompt=None, file=arguments.prompts))
    constraint = constraint_of(AWRS(form, after=arguments.after))
    model, tokenizer = options.load(arguments)
    vocabulary = vocabulary_of(model, model.generation_config, tokenizer)
    prompts = [encode(prompt, tokenizer, "--prompts") for prompt in canonical_prompts(given, None, tokenizer)]
    with Progress(console=Console(stderr=True), transient=True) as bar:
        writing = bar.add_task("writing", total=len(prompts) * arguments.rollouts)
        found = rollouts(
            scores_reader(model), prompts, constraint, vocabulary, number=arguments.rollouts,
            limit=arguments.max_new_tokens,
            temperature=arguments.temperature, batch_size=arguments.batch_size, seed=arguments.seed,
            device=model.device, progress=lambda n: bar.advance(writing, n),
        )  # fmt: skip
    about = {
        "model": arguments.model, "prompts": len(prompts), "rollouts": arguments.rollouts,
        "max_new_tokens": arguments.max_new_tokens, "temperature": arguments.temperature,
    }  # fmt: skip
    learned = value.fit(found, constraint, vocabulary, about)
    learned.save(out)
    members = float(found.values.isfinite().double().mean())
    print(
        f"{len(prompts) * arguments.rollouts} texts, {len(found.values)} tokens, {members:.0%} of them in members, ",
        end="",
    )
    print(f"{len(learned.heads)} heads; wrote {out}")
    return 0


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
