"""``textguide generate``."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import Any

from . import options


def add(commands: Any) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser("generate", help="continue prompts under guidance", description=__doc__)
    parser.add_argument("prompt", nargs="*", help="texts to continue [--file, or standard input]")
    parser.add_argument("--file", help="one prompt a line: text, or JSON with a chat; - reads standard input")
    parser.add_argument("--system", help="system prompt; makes every prompt a chat")
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument("--batch-size", type=int, default=8, help="prompts decoded at once [%(default)s]")
    parser.add_argument("--num-return-sequences", type=int, default=1, help="continuations a prompt [%(default)s]")
    parser.add_argument("--stream", action="store_true", help="print text as it is written (one prompt)")
    parser.add_argument("--json", action="store_true", help="one JSON object a continuation")
    options.add_model(parser)
    options.add_guidance(parser)
    options.add_constraint(parser)
    options.add_decoding(parser, 128)
    options.add_speculation(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Decode in batches; each batch is printed when it is finished, so that an interrupt loses one at most."""
    guidance = options.constrained(arguments, options.guidance(arguments))
    prompts = options.read_prompts(arguments)
    decoding = options.decoding(arguments)
    if arguments.speculation:
        decoding["speculation"] = arguments.speculation
    if arguments.batch_size < 1:
        raise ValueError(f"--batch-size {arguments.batch_size} must be 1 or more")
    if arguments.num_return_sequences < 1:
        raise ValueError(f"--num-return-sequences {arguments.num_return_sequences} must be 1 or more")
    if arguments.stream and len(prompts) > 1:
        raise ValueError(f"--stream takes one prompt and got {len(prompts)}; run it once for each")
    if arguments.stream and (arguments.particles or 1) > 1:
        raise ValueError("--stream excludes --particles, of which some may be dropped; leave one of them out")
    if arguments.stream and (arguments.json or arguments.num_return_sequences > 1):
        raise ValueError("--stream excludes --json and --num-return-sequences; leave it out")
    if arguments.chat:
        prompts = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
    model, tokenizer = options.load(arguments)
    if arguments.num_return_sequences > 1:
        decoding["num_return_sequences"] = arguments.num_return_sequences
        decoding["do_sample"] = True
    decoding["models"] = options.extra_models(arguments, model)
    if arguments.stream:
        return _stream(model, tokenizer, prompts[0], guidance, arguments, decoding)
    return _batches(model, tokenizer, prompts, guidance, arguments, decoding)


def _stream(
    model: Any,
    tokenizer: Any,
    prompt: Any,
    guidance: Any,
    arguments: argparse.Namespace,
    decoding: dict[str, Any],
) -> int:
    from ..generation import stream

    if isinstance(prompt, str) and arguments.system is None:
        print(prompt, end="", flush=True)
    for chunk in stream(model, tokenizer, prompt, guidance, system=arguments.system, **decoding):
        print(chunk.text, end="", flush=True)
    print()
    return 0


def _batches(
    model: Any,
    tokenizer: Any,
    prompts: list[Any],
    guidance: Any,
    arguments: argparse.Namespace,
    decoding: dict[str, Any],
) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..generation import generate

    bar = Progress(
        TextColumn("decoding"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
        disable=len(prompts) <= arguments.batch_size or not sys.stderr.isatty(),
    )  # fmt: skip
    seed = decoding.pop("seed")
    with bar:
        task = bar.add_task("decoding", total=len(prompts))
        for start in range(0, len(prompts), arguments.batch_size):
            batch = prompts[start : start + arguments.batch_size]
            # A seed of its own for every batch, so that equal batches do not repeat each other's text.
            out = generate(
                model,
                tokenizer,
                batch,
                guidance,
                system=arguments.system,
                seed=None if seed is None else seed + start,
                **decoding,
            )
            _print(out, batch, start, guidance, arguments)
            bar.advance(task, len(batch))
    return 0


def _print(out: Any, batch: list[Any], start: int, guidance: Any, arguments: argparse.Namespace) -> None:
    times = len(out.texts) // len(batch)
    drawn = _drawn(out) if out.particles > 1 and not (arguments.json or arguments.all_particles) else None
    for row, text in enumerate(out.texts):
        prompt = batch[row // times]
        if drawn is not None and row not in drawn:
            continue
        if out.origins is not None and not out.finished[row]:  # no text forked into it
            continue
        if arguments.json:
            record = {
                "index": start + row // times,
                "prompt": prompt,
                "text": text,
                "tokens": len(out.new_tokens[row]),
                "finish_reason": out.finish_reasons[row],
                "log_likelihood": float(out.log_likelihood[row]),
                "guidance": guidance.to_dict(),
                "fingerprint": guidance.fingerprint,
                "effect": out.effect.to_dict(),
                **_weights(out, row),
                **({} if out.origins is None or out.origins[row] is None else {"forked_from": out.origins[row]}),
                **({} if out.speculation is None else {"speculation": out.speculation.to_dict()}),
            }
            print(json.dumps(record, ensure_ascii=False), flush=True)
        else:
            if len(batch) > 1 or start or times > (out.particles if drawn is not None else 1):
                shown = (start * times + row) // (out.particles if drawn is not None else 1)
                print(f"[{shown + 1}]" + _mark(out, row) if arguments.all_particles else f"[{shown + 1}]")
            is_text = isinstance(prompt, str) and arguments.system is None
            print(f"{prompt}{text}" if is_text else text, flush=True)
    if not arguments.json:
        print(f"({out.effect})" if out.finished is None else f"({_summary(out)})", file=sys.stderr)
        if out.speculation is not None:
            print(f"({out.speculation})", file=sys.stderr)


def _drawn(out: Any) -> set[int]:
    """One row of every population, by weight; none of those without a finished text."""
    chosen = set()
    for start in range(0, len(out.texts), out.particles):
        rows = slice(start, start + out.particles)
        if bool(out.finished[rows].any()):
            chosen.add(start + _draw(out.log_weights[rows]))
    return chosen


def _draw(log_weights: Any) -> int:
    """An index in proportion to the weights, the same for the same weights."""
    import torch

    from ..smc.particles import weighted_sample

    return int(weighted_sample(log_weights, range(len(log_weights)), torch.Generator().manual_seed(0)))


def _mark(out: Any, row: int) -> str:
    weight = "" if out.log_weights is None else f" log weight {float(out.log_weights[row]):.2f}"
    return weight + ("" if out.deaths[row] is None else f" unfinished: {out.deaths[row]}")


def _weights(out: Any, row: int) -> dict[str, Any]:
    """What a constraint adds to the record of a row; −inf is no JSON and becomes null."""
    if out.finished is None:
        return {}
    values = {"finished": bool(out.finished[row]), "unfinished_because": out.deaths[row]}
    if out.log_weights is not None:
        population = row // out.particles
        values["log_weight"] = _finite(out.log_weights[row])
        values["log_evidence"] = _finite(out.log_evidence[population])
        values["population"] = population
    return values


def _finite(value: Any) -> float | None:
    return float(value) if float(value) > -math.inf else None


def _summary(out: Any) -> str:
    text = f"{int(out.finished.sum())} of {len(out.texts)} texts finished, {out.constraint_calls} constraint calls"
    if out.log_weights is not None:
        text += f"; log evidence {', '.join(f'{float(value):.2f}' for value in out.log_evidence)}"
    return text if not out.effect.guided_steps else f"{text}; {out.effect}"
