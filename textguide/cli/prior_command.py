"""``textguide prior``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..support import files
from ..support.checks import whole_number
from . import options
from .parser import add_command
from .progress import progress_bar


def add(commands: Any) -> None:
    """Add the command to the parser."""
    examples = (
        "prior train stories.txt --output stories.safetensors",
        'generate "Once upon a time" --guidance token-prior:prior=stories.safetensors,scale=1.5',
        "prior export stories.safetensors --openai --scale 1.5",
    )
    parser = add_command(
        commands, "prior", description="Train and export token priors, for guidance without a pass.", examples=examples
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="{train,export}")
    train = actions.add_parser("train", help="average the model's next-token distributions over texts, and save it")
    train.add_argument("texts", help="a file with one text per line, 5 to 200 texts; no labels are needed")
    train.add_argument("--output", required=True, metavar="FILE", help="file of the prior (.safetensors)")
    train.add_argument("--overwrite", action="store_true", help="replace that file")
    train.add_argument(
        "--skip", type=int, default=8, help="tokens at the start of a text that are only read [%(default)s]"
    )
    train.add_argument("--longest", type=int, default=200, help="tokens per text that are read [%(default)s]")
    train.add_argument(
        "--header", action=argparse.BooleanOptionalAction, help="the first line has the column name [detected]"
    )
    train.add_argument("--json", action="store_true", help="print everything as JSON")
    options.add_model(train)
    train.set_defaults(run=run_train)
    export = actions.add_parser("export", help="print a prior as a temperature and a logit bias")
    export.add_argument("prior", help="file of a prior, or the name of a bundled one")
    export.add_argument("--scale", type=float, default=1.5, help="γ [%(default)s]")
    export.add_argument(
        "--openai", action="store_true", help="at most 300 entries, as OpenAI's API requires; default: every token"
    )
    export.add_argument("--entries", type=int, metavar="N", help="at most N entries")
    export.set_defaults(run=run_export)


def run_train(arguments: argparse.Namespace) -> int:
    """Read the texts, save the prior, and report its most likely tokens."""
    from ..engine.token_priors import estimate_prior
    from ..guidance import priors
    from ..steering import read_texts

    whole_number("skip", arguments.skip, 1)
    whole_number("longest", arguments.longest, 2)
    out = files.writable_file(arguments.output, "--output")
    if out.exists() and not arguments.overwrite:
        raise ValueError(f"--output {out} exists; name another file, or add --overwrite")
    if out.suffix != priors.SUFFIX:
        raise ValueError(f"--output {out} must end with {priors.SUFFIX}")
    texts = read_texts(arguments.texts, arguments.header)
    model, tokenizer = options.load(arguments)
    with progress_bar() as bar:
        task = bar.add_task("reading", total=len(texts))
        prior = estimate_prior(
            model,
            tokenizer,
            texts,
            skip=arguments.skip,
            longest=arguments.longest,
            name=arguments.model,
            progress=lambda count: bar.advance(task, count),
        )
    prior = prior.save(out)
    top = prior.log_probs.topk(min(10, len(prior.log_probs)))
    report = {
        "out": str(out),
        "fingerprint": prior.fingerprint,
        "model": prior.model_name,
        "texts": prior.texts,
        "tokens": prior.tokens,
        "vocabulary": len(prior.log_probs),
        "most_likely": {
            tokenizer.decode([int(token)]): round(float(value.exp()), 4)
            for token, value in zip(top.indices, top.values, strict=True)
        },
    }
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        likely = ", ".join(f"{token!r} {share:.3f}" for token, share in report["most_likely"].items())  # type: ignore[attr-defined]
        print(
            f"{out}: averaged over {prior.tokens} positions of {prior.texts} texts of {len(prior.log_probs)} tokens\n"
            f"most likely: {likely}\nuse it with --guidance token-prior:prior={out},scale=1.5"
        )
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Print the arguments of a request as JSON, and what leaving out entries loses."""
    import sys

    from ..guidance.logit_bias import OPENAI_ENTRIES, logit_bias, loss
    from ..guidance.priors import Prior

    prior = Prior.load(arguments.prior).log_probs
    entries = OPENAI_ENTRIES if arguments.openai and arguments.entries is None else arguments.entries
    request = logit_bias(prior, arguments.scale, entries)
    bias = {str(token): value for token, value in request.logit_bias.items()}
    print(json.dumps({"temperature": round(request.temperature, 6), "logit_bias": bias}))
    if len(bias) < len(prior):
        lost = loss(request, prior, prior[None])
        print(
            f"{len(bias)} of {len(prior)} tokens have an entry; on the average distribution this loses {lost:.3f} nats "
            "per token (KL from the exact rule)",
            file=sys.stderr,
        )
    return 0
